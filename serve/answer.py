"""The loop of a request: pin a version, draw candidates, score them, choose, record, reply.

What draws (vLLM) and what speaks HTTP lie elsewhere; this file says in which order things happen and what is kept of them.
"""

import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from attune.events import encode
from attune.types import EVALUATION, Candidate, Interaction, Sampling, question
from serve import metrics
from serve.recent import RecentInteractions
from serve.rerank import choose
from serve.scorer import Scored, Scorer, Wish
from serve.slot import Policy, Slots


@dataclass(frozen=True, slots=True)
class Ask:
    """What a client wants beyond the sampling parameters."""

    interaction_id: str
    messages: tuple[Mapping[str, Any], ...]
    version: int | None
    """None: whatever version is live."""
    num_candidates: int
    rerank: bool
    user: str | None
    conversation_id: str | None
    objectives: Mapping[str, float] = field(default_factory=dict)
    """Weights of the operator's terms, in place of the configured ones."""


@dataclass(frozen=True, slots=True)
class Draw:
    """What the engine sampled for one request."""

    prompt_token_ids: tuple[int, ...]
    sampling: Sampling
    seed: int | None
    candidates: tuple[Candidate, ...]


Sampler = Callable[[Policy, int], Awaitable[Draw]]


class Outlet(Protocol):
    """Where interactions go; never blocks, and counts what it has to give up."""

    def offer(self, record: Any) -> bool: ...


class Answerer:
    """Answers requests with the best of several candidates and remembers how."""

    def __init__(self, slots: Slots, scorer: Scorer, outlet: Outlet, recent: RecentInteractions, prompt_version: str, seed: int) -> None:
        self.slots, self.scorer, self.outlet, self.recent = slots, scorer, outlet, recent
        self.prompt_version = prompt_version
        self.rng = random.Random(seed)

    async def answer(self, ask: Ask, wanted: int, sample: Sampler) -> Interaction:
        """Return the recorded interaction whose `shown` candidates are the reply's choices."""
        with self.slots.lease(ask.version) as policy:
            draw = await sample(policy, max(ask.num_candidates, wanted))
        scored = Scored(draw.candidates, 0)
        # What only measures and is not ranked goes unscored: the learner looks at it if it is voted on.
        if ask.conversation_id != EVALUATION or len(draw.candidates) > wanted:
            wish = Wish(question(ask.messages), ask.objectives)
            scored = await self.scorer.score(draw.prompt_token_ids, draw.candidates, draw.sampling.temperature, wish)
        candidates = scored.candidates
        choice = choose([c.scores.get("total", 0.0) for c in candidates], wanted, rerank=ask.rerank, rng=self.rng)
        interaction = Interaction(
            id=ask.interaction_id,
            created_at=time.time(),
            messages=ask.messages,
            prompt_token_ids=draw.prompt_token_ids,
            sampling=draw.sampling,
            candidates=candidates,
            shown=choice.shown,
            propensities=choice.propensities,
            policy_version=policy.number,
            reward_version=scored.reward_version,
            prompt_version=self.prompt_version,
            seed=draw.seed,
            conversation_id=ask.conversation_id,
            turn=sum(m.get("role") == "user" for m in ask.messages),
            user=ask.user,
        )
        if self.outlet.offer(encode(interaction)):  # a vote on what was given up would wait for it in vain
            self.recent.remember(interaction)
        metrics.observe(interaction)
        return interaction
