"""Advantages of sampled answers: pure. Shapes: N answers of one request, T tokens of one answer."""

from collections.abc import Sequence

import torch

WHITEN_FLOOR = 0.3


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


def shaped(terminal: float, log_ratio_T: torch.Tensor, *, beta: float, budget_nats: float, hinge: float) -> torch.Tensor:
    """Return per-token rewards: -beta x log-ratio to the base everywhere, and at the end `terminal` less the hinge.

    The hinge takes `hinge` per nat off the reward of an answer whose summed log-ratio lies beyond the budget: it holds where a
    controller that raises beta overshoots.
    """
    reward_T = -beta * log_ratio_T.clamp(-10.0, 10.0)
    if len(reward_T):
        reward_T[-1] += terminal - hinge * max(0.0, float(log_ratio_T.sum()) - budget_nats)
    return reward_T


def whiten(advantages: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the advantages of one optimizer batch with mean 0 and standard deviation 1 over all its tokens.

    A batch whose rewards nearly tie is not blown up to 1: the deviation that divides is at least 0.3 anchor standard deviations.
    """
    flat = torch.cat(list(advantages)) if advantages else torch.zeros(0)
    if flat.numel() < 2:
        return list(advantages)
    scale = flat.std().clamp_min(WHITEN_FLOOR)
    return [(a - flat.mean()) / scale for a in advantages]
