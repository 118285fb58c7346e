"""Served interactions as rollouts: what PPO needs of one request's candidates. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from attune.packing import MAX_ROW_TOKENS
from attune.reward import RewardModel
from attune.terms import Terms
from attune.types import Interaction, question

NO_TERMS = Terms()


@dataclass(frozen=True, slots=True)
class Rollout:
    """The candidates of one request, all of them (the shown one alone would be a best-of-n sample)."""

    interaction_id: str
    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    behaviour: tuple[tuple[float, ...], ...]
    """Log-probs at sampling time, per answer and token."""
    reference: tuple[tuple[float, ...], ...]
    """Log-probs of the base model at the same temperature."""
    rewards: tuple[float, ...]
    """Pessimistic utility in anchor standard deviations."""
    temperature: float
    policy_version: int
    terms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """What each of the operator's terms said of every answer, before its weight."""
    sharp: tuple[tuple[float, ...], ...] = ()
    """Log-probs of the base at a lower temperature, which drift is priced against; none: against `reference`."""


def unusable(interaction: Interaction, live: int, max_staleness: int) -> str | None:
    """Return why PPO cannot learn from an interaction, or None if it can."""
    if not interaction.sampling.train_grade:
        return "sampling"  # its log-probs are not those of the plain policy
    if live - interaction.policy_version > max_staleness or interaction.policy_version > live:
        return "stale"
    if len(interaction.candidates) < 2:
        return "single"
    if any(c.features is None or c.ref_logprobs is None for c in interaction.candidates):
        return "unscored"
    if sum(bool(c.token_ids) for c in interaction.candidates) < 2:
        return "empty"
    if interaction.num_tokens > MAX_ROW_TOKENS:
        return "long"  # more memory than a learner may have, and no vote would be looked at meanwhile
    return None


def make_rollout(interaction: Interaction, reward: RewardModel, pessimism: float, terms: Terms = NO_TERMS) -> Rollout:
    """Return the rollout of a usable interaction, its candidates judged by this reward version and the operator's terms."""
    candidates = [c for c in interaction.candidates if c.token_ids]
    texts = [c.text for c in candidates]
    features = [c.features or b"" for c in candidates]
    values = terms.values(question(interaction.messages), texts, reward.wished(features, texts, pessimism))
    bonus = terms.bonus(values, {}, len(texts)) if terms.terms else None
    rewards = reward.reward(features, texts, pessimism, bonus)
    return Rollout(
        interaction_id=interaction.id,
        prompt=interaction.prompt_token_ids,
        answers=tuple(c.token_ids for c in candidates),
        behaviour=tuple(c.logprobs for c in candidates),
        reference=tuple(c.ref_logprobs or () for c in candidates),
        rewards=tuple(float(r) for r in rewards),
        temperature=interaction.sampling.temperature,
        policy_version=interaction.policy_version,
        terms={name: tuple(map(float, value)) for name, value in values.items()},
        sharp=tuple(c.sharp_logprobs for c in candidates if c.sharp_logprobs is not None),
    )


def tied(rollout: Rollout, tolerance: float = 1e-4) -> bool:
    """Whether all rewards of a group are alike, so that it teaches nothing."""
    return max(rollout.rewards) - min(rollout.rewards) < tolerance or not all(map(math.isfinite, rollout.rewards))
