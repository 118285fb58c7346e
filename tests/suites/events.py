"""Events as the suites make them: small, valid, told apart by their ids."""

import struct
from collections.abc import Sequence
from typing import Any

from attune.events import Record, encode
from attune.types import Candidate, Feedback, Interaction, Kind, Sampling, Withdrawal


def interaction(name: str = "i1", *, candidates: int = 4, shown: Sequence[int] = (2, 0), created_at: float = 1000.0) -> Interaction:
    """An answered request whose numbers survive float32."""
    some = tuple(
        Candidate(
            index=i,
            text=f"answer {i} \N{SNOWMAN} \0 '\"",
            token_ids=(5, 6, 49_151 + i),
            logprobs=(-0.5, -1.25, -2.0 - i),
            finish_reason="stop",
            ref_logprobs=(-0.75, -1.5, -2.5),
            features=struct.pack("<4e", 1.0, -2.0, 0.5, i),
            scores={"overall": 0.25 * i, "spread": 0.1, "total": 0.2 * i},
            sharp_logprobs=(-0.5, -1.25, -2.75),
        )
        for i in range(candidates)
    )
    return Interaction(
        id=name,
        created_at=created_at,
        messages=({"role": "user", "content": "hello \0 there"},),
        prompt_token_ids=(1, 2, 3),
        sampling=Sampling(temperature=1.0, max_tokens=64),
        candidates=some,
        shown=tuple(shown),
        propensities=tuple(1.0 for _ in shown),
        policy_version=3,
        reward_version=2,
        prompt_version="1",
        seed=7,
        conversation_id="c1",
        turn=1,
        user="u1",
    )


def vote(
    event_id: str, *, of: str = "i1", name: str = "", value: Any = 1, kind: Kind = Kind.THUMB, at: float = 1001.0, choice: int = 0
) -> Feedback:
    """A vote; the same `name` is the same vote, changed."""
    return Feedback(name or f"fb-{of}", event_id, of, kind, value, choice, at, None, "u1")


def withdrawal(event_id: str, *, of: str = "i1", name: str = "", at: float = 1002.0) -> Withdrawal:
    return Withdrawal(event_id, name or f"fb-{of}", of, at)


def corrupt(event_id: str = "bad", *, key: str = "i1", body: bytes = b'{"id": "\xff') -> Record:
    """A record whose body is no event."""
    return Record(key, encode(vote(event_id)).headers, body)
