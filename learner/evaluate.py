"""How a policy does on served answers without sampling anew: off-policy figures for the gate. Shapes: N answers of one request."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from learner.losses import k3
from learner.policy import Policy
from learner.rollout import Rollout

MAX_WEIGHT = 10.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What one policy thinks of one group's answers."""

    logprob_NT: tuple[torch.Tensor, ...]
    """Log-probs of each answer's tokens (nats)."""
    entropy_P: torch.Tensor
    """Nats, per token of all answers."""
    empty: float
    """Probability of ending before the first word."""

    def totals(self) -> torch.Tensor:
        """Return the answers' own log-probs (nats), N of them."""
        return torch.stack([logprob_T.sum() for logprob_T in self.logprob_NT])


Looks = Mapping[str, Seen]
"""What one policy thinks of groups of answers, by interaction id."""


def look(
    policy: Policy,
    groups: Sequence[Rollout],
    end_token: int | None = None,
    between: Callable[[], None] = lambda: None,
    known: Looks | None = None,
) -> Looks:
    """Return by interaction id what a policy thinks of groups of answers, at the temperature they were sampled at.

    With an `end_token` the empty answer rides along in every row: its probability is exact, and costs one token. `between` is called
    before each row. What is `known` of the policy as it stands is not computed again.
    """
    seen: dict[str, Seen] = {}
    for group in groups:
        if known and group.interaction_id in known:
            seen[group.interaction_id] = known[group.interaction_id]
            continue
        between()
        rides = () if end_token is None else ((end_token,),)
        packed = policy.row(group.prompt, (*group.answers, *rides))
        with torch.no_grad():
            logprob_P, entropy_P = policy.logprobs(packed, group.temperature)
        spans = packed.spans[: len(group.answers)]
        rows = tuple(logprob_P[span] for span in spans)
        seen[group.interaction_id] = Seen(rows, entropy_P[: spans[-1].stop], math.exp(float(logprob_P[-1])) if rides else 0.0)
    return seen


def figures(groups: Sequence[Rollout], seen: Looks) -> dict[str, float]:
    """Return what the gate asks of a policy: held-out reward, KL to the base, entropy (nats per token), share of empty answers."""
    looks = [seen[group.interaction_id] for group in groups]
    return {
        "held_out": held_out_reward(groups, seen),
        "kl": kl_to_base(groups, seen),
        "entropy": float(torch.cat([look.entropy_P for look in looks]).mean()),
        "empty_share": sum(look.empty for look in looks) / len(looks),
    }


def held_out_reward(groups: Sequence[Rollout], seen: Looks) -> float:
    """Return the mean reward that a policy would get on these groups: self-normalised importance sampling within each group."""
    return _expected(groups, seen, [torch.tensor(group.rewards) for group in groups])


def kl_to_base(groups: Sequence[Rollout], seen: Looks) -> float:
    """Return a policy's KL to the base on these groups, in nats per answer, by the same sampling."""
    references = [torch.tensor([sum(row) for row in group.reference]) for group in groups]
    return _expected(groups, seen, [seen[g.interaction_id].totals() - base_N for g, base_N in zip(groups, references, strict=True)])


def step_kl(groups: Sequence[Rollout], before: Looks, after: Looks) -> float:
    """Return how far an update moved the policy, in nats per answer: estimated at each token of answers of the earlier policy.

    Over whole answers it would estimate the same, but from a handful of them one that became forty times as likely decides alone.
    """
    pairs = [rows for g in groups for rows in zip(before[g.interaction_id].logprob_NT, after[g.interaction_id].logprob_NT, strict=True)]
    return sum(float(k3(after_T, before_T).sum()) for before_T, after_T in pairs) / len(pairs)


def _expected(groups: Sequence[Rollout], seen: Looks, values: Sequence[torch.Tensor]) -> float:
    means = []
    for group, value_N in zip(groups, values, strict=True):
        behaviour_N = torch.tensor([sum(x for x in row if math.isfinite(x)) for row in group.behaviour])
        weight_N = (seen[group.interaction_id].totals() - behaviour_N).clamp(-20.0, 20.0).exp().clamp_max(MAX_WEIGHT)
        means.append(float((weight_N * value_N).sum() / weight_N.sum()))
    return sum(means) / len(means)
