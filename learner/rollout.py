"""Served interactions as rollouts: what PPO needs of one request's candidates. Pure."""

import math
from dataclasses import dataclass

from attune.reward import RewardModel
from attune.types import Interaction


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
    return None


def make_rollout(interaction: Interaction, reward: RewardModel, pessimism: float) -> Rollout:
    """Return the rollout of a usable interaction, its candidates judged by this reward version."""
    candidates = [c for c in interaction.candidates if c.token_ids]
    rewards = reward.reward([c.features or b"" for c in candidates], [c.text for c in candidates], pessimism)
    return Rollout(
        interaction_id=interaction.id,
        prompt=interaction.prompt_token_ids,
        answers=tuple(c.token_ids for c in candidates),
        behaviour=tuple(c.logprobs for c in candidates),
        reference=tuple(c.ref_logprobs or () for c in candidates),
        rewards=tuple(float(r) for r in rewards),
        temperature=interaction.sampling.temperature,
        policy_version=interaction.policy_version,
    )


def tied(rollout: Rollout, tolerance: float = 1e-4) -> bool:
    """Whether all rewards of a group are alike, so that it teaches nothing."""
    return max(rollout.rewards) - min(rollout.rewards) < tolerance or not all(map(math.isfinite, rollout.rewards))
