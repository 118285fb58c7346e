"""How a policy does on served answers without sampling anew: off-policy figures for the gate. Shapes: N answers of one request."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from learner.policy import Policy
from learner.rollout import Rollout

MAX_WEIGHT = 10.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What one policy thinks of some groups of answers."""

    logprob_N: list[torch.Tensor]
    """Summed log-probs (nats) of every group's answers."""
    entropy: float
    """Nats per token, mean."""
    empty_share: float = 0.0
    """Mean probability of ending before the first word."""


def look(policy: Policy, groups: Sequence[Rollout], end_token: int | None = None, between: Callable[[], None] = lambda: None) -> Seen:
    """Return what a policy thinks of groups of answers, at the temperature they were sampled at.

    With an `end_token` the empty answer rides along in every row: its probability is exact, and costs one token. `between` is called
    before each row.
    """
    sums, entropies, empty = [], [], []
    for group in groups:
        between()
        rides = () if end_token is None else ((end_token,),)
        packed = policy.row(group.prompt, (*group.answers, *rides))
        with torch.no_grad():
            logprob_P, entropy_P = policy.logprobs(packed, group.temperature)
        spans = packed.spans[: len(group.answers)]
        sums.append(torch.stack([logprob_P[span].sum() for span in spans]))
        entropies.append(entropy_P[: spans[-1].stop])
        empty += [math.exp(float(logprob_P[-1]))] if rides else []
    flat = torch.cat(entropies) if entropies else torch.zeros(1)
    return Seen(sums, float(flat.mean()), sum(empty) / len(empty) if empty else 0.0)


def held_out_reward(groups: Sequence[Rollout], seen: Seen) -> float:
    """Return the mean reward that a policy would get on these groups: self-normalised importance sampling within each group."""
    return _expected(groups, seen, [torch.tensor(group.rewards) for group in groups])


def kl_to_base(groups: Sequence[Rollout], seen: Seen) -> float:
    """Return a policy's KL to the base on these groups, in nats per answer, by the same sampling."""
    references = [torch.tensor([sum(row) for row in group.reference]) for group in groups]
    return _expected(groups, seen, [own_N - base_N for own_N, base_N in zip(seen.logprob_N, references, strict=True)])


def step_kl(groups: Sequence[Rollout], before: Seen, after: Seen) -> float:
    """Return how far an update moved the policy, in nats per answer: k3 estimate over answers sampled near the earlier policy."""
    ratios = [(a - b).clamp(-20.0, 20.0) for a, b in zip(after.logprob_N, before.logprob_N, strict=True)]
    flat = torch.cat(ratios) if ratios else torch.zeros(1)
    return float((flat.exp() - 1 - flat).clamp_max(100.0).mean())


def _expected(groups: Sequence[Rollout], seen: Seen, values: Sequence[torch.Tensor]) -> float:
    means = []
    for group, logprob_N, value_N in zip(groups, seen.logprob_N, values, strict=True):
        behaviour_N = torch.tensor([sum(x for x in row if math.isfinite(x)) for row in group.behaviour])
        weight_N = (logprob_N - behaviour_N).clamp(-20.0, 20.0).exp().clamp_max(MAX_WEIGHT)
        means.append(float((weight_N * value_N).sum() / weight_N.sum()))
    return sum(means) / len(means) if means else 0.0
