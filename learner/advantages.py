"""Advantages of sampled answers: pure. Shapes: N answers of one request, T tokens of one answer."""

from collections.abc import Sequence

import torch

SCALE_FLOOR = 0.6
"""Anchor standard deviations: what rewards differ by while there is much to learn. Towards the end they differ by a fifth of that."""


def leave_one_out(reward_N: torch.Tensor) -> torch.Tensor:
    """Return each reward minus the mean of the others' (RLOO's baseline); zeros if there is no other.

    >>> leave_one_out(torch.tensor([1.0, 0.0, 2.0])).tolist()
    [0.0, -1.5, 1.5]
    """
    count = len(reward_N)
    if count < 2:
        return torch.zeros_like(reward_N)
    return reward_N - (reward_N.sum() - reward_N) / (count - 1)


def gae(reward_T: torch.Tensor, value_T: torch.Tensor, gamma: float = 1.0, lam: float = 1.0) -> torch.Tensor:
    """Return generalised advantage estimates (Schulman et al. 2016) of one finished answer; the value after its end is 0."""
    advantage_T = torch.zeros_like(reward_T)
    running = 0.0
    for t in range(len(reward_T) - 1, -1, -1):
        following = float(value_T[t + 1]) if t + 1 < len(value_T) else 0.0
        delta = float(reward_T[t]) + gamma * following - float(value_T[t])
        running = delta + gamma * lam * running
        advantage_T[t] = running
    return advantage_T


def shaped(terminal: float, drift_T: torch.Tensor, nats: float, *, beta: float, budget_nats: float, hinge: float) -> torch.Tensor:
    """Return per-token rewards: -beta x drift (a log-ratio) everywhere, and at the end `terminal` less the hinge.

    The hinge takes `hinge` per nat off the reward of an answer whose log-ratio to the base, `nats`, lies beyond the budget: it holds
    where a controller that raises beta overshoots.
    """
    reward_T = -beta * drift_T.clamp(-10.0, 10.0)
    if len(reward_T):
        reward_T[-1] += terminal - hinge * max(0.0, nats - budget_nats)
    return reward_T


def group_advantages(rewards: Sequence[torch.Tensor], values: Sequence[torch.Tensor], lam: float) -> list[torch.Tensor]:
    """Return token advantages of one request's answers: GAE over what the leave-one-out baseline leaves of the reward.

    `values` are the critic's, of exactly that: 0 everywhere makes it the plain leave-one-out estimate.
    """
    totals_N = torch.stack([r.sum() for r in rewards])
    baseline_N = totals_N - leave_one_out(totals_N)
    left = [torch.cat([r[:-1], r[-1:] - b]) for r, b in zip(rewards, baseline_N, strict=True)]
    return [gae(r, v, lam=lam) for r, v in zip(left, values, strict=True)]


def scale(deviation: float) -> float:
    """Return what the advantages of an optimizer batch are divided by, given their standard deviation over all its tokens.

    They are not centred again: the baseline has done it within each request. A batch whose rewards nearly tie is not blown up to 1:
    the divisor is at least `SCALE_FLOOR`. Adam undoes that, which normalises gradients itself: `ppo` steps less, too.
    """
    return max(deviation, SCALE_FLOOR)
