"""THE update: rollouts in, a stepped adapter and its figures out.

PPO on all candidates of served requests: leave-one-out baseline, k1 KL to the base in the reward with a hinge on each answer's budget,
one scale for the advantages of an optimizer batch, decoupled clipping with truncated importance weights. Left out: a critic (the
baseline of the same request's other candidates needs none) and GAE's lambda (1, since there are no values to bootstrap from).
Each request is one packed row, and each row's gradient is made before the next row is read: memory is that of one request.
Shapes: P tokens of one row.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from attune.config import LearnerSection
from attune.errors import Diverged
from learner.advantages import group_advantages, scale, shaped
from learner.losses import Sums, policy_loss, sequence_kept
from learner.policy import Policy
from learner.rollout import Rollout

MAX_STEP_KL_NATS = 3.0
"""How far one update may move the policy, in nats per answer: steps that follow are left out beyond it."""
MIN_ESS = 0.5


class Stopped(Exception):
    """The program was told to stop in the middle of an update, which is to be forgotten."""


@dataclass(frozen=True, slots=True)
class _Row:
    """What one rollout's forward and backward pass came to."""

    sums: Sums
    kl_nats: float
    entropy: float
    kept: float


def update(
    policy: Policy,
    rollouts: Sequence[Rollout],
    settings: LearnerSection,
    *,
    live: int | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Take the optimizer steps of one update and return its figures; raises `Diverged` or `Stopped` and leaves clean-up to the caller.

    Each rollout is used once: the batch is split into `optimizer_steps` parts, and later parts are clipped around the policy as it was
    before the first step. For answers of the `live` version, which this policy is, the sampler's own log-probs say what that was; for
    others it costs a forward pass. A smaller update takes smaller steps, since Adam's do not shrink with the evidence.
    """
    steps = min(settings.optimizer_steps, len(rollouts))
    parts = [rollouts[part::steps] for part in range(steps)]
    share = min(1.0, len(rollouts) / settings.max_groups_per_update) ** 0.5
    prox = {id(rollout): _before(policy, rollout, live, stopping) for part in parts[1:] for rollout in part}
    everything, rows, norms = Sums(), list[_Row](), list[float]()
    for part in parts:
        tokens = sum(len(answer) for rollout in part for answer in rollout.answers)
        made = [_backward(policy, rollout, prox.get(id(rollout)), tokens, settings, stopping) for rollout in part]
        sums = sum((row.sums for row in made), Sums())
        moved = sums.kl / max(1, sum(len(rollout.answers) for rollout in part))
        everything, rows = everything + sums, rows + made
        if not math.isfinite(sums.loss):
            raise Diverged("the policy loss is not finite")
        if sums.ess < MIN_ESS:
            raise Diverged(f"the effective sample size fell to {sums.ess:.2f}: the rollouts are too old for this policy")
        if moved > MAX_STEP_KL_NATS:
            policy.forget_gradients()
            break
        norms.append(policy.step(settings.grad_clip, 1.0 / scale(sums.deviation), share))
        if not math.isfinite(norms[-1]):
            raise Diverged("the gradient is not finite")
    return everything.means() | _figures(rollouts, rows, everything.tokens) | {"grad_norm": norms[-1], "steps": float(len(norms))}


def _before(policy: Policy, rollout: Rollout, live: int | None, stopping: Callable[[], bool]) -> torch.Tensor:
    """Return the log-probs of a rollout's answers under the policy as it stands; NaN where the sampler did not know."""
    if stopping():
        raise Stopped
    if rollout.policy_version == live:
        return torch.tensor([x for row in rollout.behaviour for x in row])
    with torch.no_grad():
        return policy.logprobs(policy.row(rollout.prompt, rollout.answers), rollout.temperature)[0]


def _backward(
    policy: Policy, rollout: Rollout, prox_P: torch.Tensor | None, tokens: int, settings: LearnerSection, stopping: Callable[[], bool]
) -> _Row:
    """Add one rollout's gradient to the policy's, for a loss that is the mean over `tokens` of an unscaled advantage."""
    if stopping():
        raise Stopped
    packed = policy.row(rollout.prompt, rollout.answers)
    logprob_P, entropy_P = policy.logprobs(packed, rollout.temperature)
    prox_P = logprob_P.detach() if prox_P is None else torch.where(prox_P.isfinite(), prox_P, logprob_P.detach())
    behaviour_P = torch.tensor([x for row in rollout.behaviour for x in row])
    ratio_P = prox_P - torch.tensor([x for row in rollout.reference for x in row])
    rewards = [
        shaped(reward, ratio_P[span], beta=settings.kl_beta, budget_nats=settings.kl_budget_nats, hinge=settings.kl_hinge)
        for reward, span in zip(rollout.rewards, packed.spans, strict=True)
    ]
    keep_P = torch.cat([torch.full((s.stop - s.start,), float(sequence_kept(prox_P[s], behaviour_P[s]))) for s in packed.spans])
    loss, sums = policy_loss(
        logprob_P, prox_P, behaviour_P, torch.cat(group_advantages(rewards)), keep_P,
        clip_low=settings.clip_low, clip_high=settings.clip_high,
    )  # fmt: skip
    (loss / tokens).backward()  # type: ignore[no-untyped-call]
    return _Row(sums, float(ratio_P.sum()), float(entropy_P.sum()), float(keep_P.sum()))


def _figures(rollouts: Sequence[Rollout], rows: Sequence[_Row], tokens: int) -> dict[str, float]:
    answers = sum(len(rollout.answers) for rollout in rollouts[: len(rows)])
    return {
        "kl_to_ref": sum(row.kl_nats for row in rows) / max(1, answers),
        "entropy": sum(row.entropy for row in rows) / max(1, tokens),
        "kept": sum(row.kept for row in rows) / max(1, tokens),
        "score_mean": sum(sum(r.rewards) for r in rollouts) / max(1, sum(len(r.rewards) for r in rollouts)),
    }
