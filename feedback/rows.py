"""Events <-> rows: pure, and exact but for log-probs, which are kept as float32 (what samplers give)."""

import json
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from attune.errors import InvalidRecord
from attune.events import encodable
from attune.types import Candidate, Feedback, Interaction, Kind, Sampling, Withdrawal

Row = dict[str, Any]
VOTE_COLUMNS = ("id", "event_id", "interaction_id", "choice", "received_at", "aspect", "user")


@dataclass(frozen=True, slots=True)
class Vote:
    """The latest state of one vote as the store keeps it; `position` is None while its interaction is not there."""

    feedback: Feedback
    in_force: bool
    position: int | None
    stored_at: float


def interaction_rows(interaction: Interaction, position: int, stored_at: float) -> tuple[Row, list[Row]]:
    """Return the row of an interaction and those of its candidates; raises `InvalidRecord` if a number does not fit its column."""
    names = ("id", "created_at", "user", "conversation_id", "turn", "policy_version", "reward_version", "prompt_version", "seed")
    row: Row = {name: getattr(interaction, name) for name in names}
    _check(row)
    row |= {
        "position": position,
        "stored_at": stored_at,
        "num_candidates": len(interaction.candidates),
        "shown": json.dumps(interaction.shown),
        "propensities": json.dumps(interaction.propensities),
        "sampling": json.dumps(asdict(interaction.sampling)),
        "messages": json.dumps(interaction.messages),
        "prompt_token_ids": _pack("i", interaction.prompt_token_ids),
    }
    return row, [_candidate_row(interaction.id, c) for c in interaction.candidates]


def interaction_from(row: Mapping[str, Any], candidates: Iterable[Mapping[str, Any]]) -> Interaction:
    """Return the interaction that the rows hold; the candidates come in order of their index."""
    return Interaction(
        id=row["id"],
        created_at=row["created_at"],
        messages=tuple(json.loads(row["messages"])),
        prompt_token_ids=tuple(_unpack("i", row["prompt_token_ids"])),
        sampling=Sampling(**json.loads(row["sampling"])),
        candidates=tuple(map(_candidate_from, candidates)),
        shown=tuple(json.loads(row["shown"])),
        propensities=tuple(json.loads(row["propensities"])),
        policy_version=row["policy_version"],
        reward_version=row["reward_version"],
        prompt_version=row["prompt_version"],
        seed=row["seed"],
        conversation_id=row["conversation_id"],
        turn=row["turn"],
        user=row["user"],
    )


def vote_row(vote: Vote) -> Row:
    """Return the row of a vote."""
    row: Row = {name: getattr(vote.feedback, name) for name in VOTE_COLUMNS}
    row |= {"kind": str(vote.feedback.kind), "value": json.dumps(vote.feedback.value)}
    return row | {"in_force": vote.in_force, "position": vote.position, "stored_at": vote.stored_at}


def vote_from(row: Mapping[str, Any]) -> Vote:
    """Return the vote that a row holds."""
    feedback = Feedback(kind=Kind(row["kind"]), value=json.loads(row["value"]), **{name: row[name] for name in VOTE_COLUMNS})
    return Vote(feedback, bool(row["in_force"]), row["position"], row["stored_at"])


def check_storable(event: Interaction | Feedback | Withdrawal) -> None:
    """Raise `InvalidRecord` if a database could not hold the event, so that one such event never stops those beside it."""
    if isinstance(event, Interaction):
        interaction_rows(event, 0, 0.0)
    else:
        names = VOTE_COLUMNS if isinstance(event, Feedback) else ("event_id", "feedback_id", "interaction_id", "received_at")
        _check({name: getattr(event, name) for name in names})


def _check(row: Row) -> None:
    for name, value in row.items():
        if isinstance(value, str) and ("\0" in value or len(value) > 200 or not encodable(value)):
            raise InvalidRecord(f"{name}: longer than 200 characters, or holds one that no database takes")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise InvalidRecord(f"{name}: the number is out of range")
    if not -(2**31) <= row.get("turn", 0) < 2**31:
        raise InvalidRecord("turn: the number is out of range")


def _candidate_row(interaction_id: str, candidate: Candidate) -> Row:
    _check({"finish_reason": candidate.finish_reason[:50]})
    return {
        "interaction_id": interaction_id,
        "index": candidate.index,
        "text": json.dumps(candidate.text),
        "finish_reason": candidate.finish_reason[:50],
        "scores": json.dumps(dict(candidate.scores)),
        "token_ids": _pack("i", candidate.token_ids),
        "logprobs": _pack("f", candidate.logprobs),
        "ref_logprobs": None if candidate.ref_logprobs is None else _pack("f", candidate.ref_logprobs),
        "sharp_logprobs": None if candidate.sharp_logprobs is None else _pack("f", candidate.sharp_logprobs),
        "features": candidate.features,
    }


def _candidate_from(row: Mapping[str, Any]) -> Candidate:
    reference, sharp = row["ref_logprobs"], row["sharp_logprobs"]
    return Candidate(
        index=row["index"],
        text=json.loads(row["text"]),
        token_ids=tuple(_unpack("i", row["token_ids"])),
        logprobs=tuple(_unpack("f", row["logprobs"])),
        finish_reason=row["finish_reason"],
        ref_logprobs=None if reference is None else tuple(_unpack("f", reference)),
        features=None if row["features"] is None else bytes(row["features"]),
        scores=json.loads(row["scores"]),
        sharp_logprobs=None if sharp is None else tuple(_unpack("f", sharp)),
    )


def _pack(code: str, numbers: Sequence[float]) -> bytes:
    try:
        packed = array(code, numbers)
    except OverflowError as error:
        raise InvalidRecord("a token id is out of range") from error
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _unpack(code: str, data: bytes) -> "array[Any]":
    numbers: array[Any] = array(code)
    numbers.frombytes(data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
