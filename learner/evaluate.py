"""How a policy does on served answers without sampling anew: off-policy figures for the gate. Shapes: N answers of one request."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from learner.policy import Policy
from learner.rollout import Rollout

MAX_WEIGHT = 10.0


@dataclass(frozen=True, slots=True)
class Seen:
    """Summed log-probs (nats) and entropies of every answer of some groups under one policy."""

    logprob_N: list[torch.Tensor]
    entropy: float


def look(policy: Policy, groups: Sequence[Rollout]) -> Seen:
    """Return what a policy thinks of groups of answers, at the temperature they were sampled at."""
    sums, entropies = [], []
    with torch.no_grad():
        for group in groups:
            packed = policy.row(group.prompt, group.answers)
            logprob_P, entropy_P = policy.logprobs(packed, group.temperature)
            sums.append(torch.stack([logprob_P[span].sum() for span in packed.spans]))
            entropies.append(entropy_P)
    flat = torch.cat(entropies) if entropies else torch.zeros(1)
    return Seen(sums, float(flat.mean()))


def held_out_reward(groups: Sequence[Rollout], seen: Seen) -> float:
    """Return the mean reward that a policy would get on these groups: self-normalised importance sampling within each group."""
    values = []
    for group, logprob_N in zip(groups, seen.logprob_N, strict=True):
        behaviour_N = torch.tensor([sum(row) for row in group.behaviour])
        weight_N = (logprob_N - behaviour_N).clamp(-20.0, 20.0).exp().clamp_max(MAX_WEIGHT)
        values.append(float((weight_N * torch.tensor(group.rewards)).sum() / weight_N.sum()))
    return sum(values) / len(values) if values else 0.0


def step_kl(groups: Sequence[Rollout], before: Seen, after: Seen) -> float:
    """Return how far an update moved the policy, in nats per answer: k3 estimate over answers sampled near the earlier policy."""
    ratios = [(a - b).clamp(-20.0, 20.0) for a, b in zip(after.logprob_N, before.logprob_N, strict=True)]
    flat = torch.cat(ratios) if ratios else torch.zeros(1)
    return float((flat.exp() - 1 - flat).clamp_max(100.0).mean())
