"""THE update: rollouts in, a stepped adapter and its figures out.

PPO on all candidates of served requests: leave-one-out baseline, k1 KL to the base in the reward with a hinge on each answer's budget,
whitening over the optimizer batch, decoupled clipping with truncated importance weights. Left out: a critic (the baseline of the same
request's other candidates needs none) and GAE's lambda (1, since there are no values to bootstrap from).
Shapes: P tokens of one optimizer batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from attune.config import LearnerSection
from attune.errors import Diverged
from learner.advantages import gae, leave_one_out, shaped, whiten
from learner.losses import policy_loss, sequence_kept
from learner.policy import Policy
from learner.rollout import Rollout


@dataclass(frozen=True, slots=True)
class _Batch:
    """One optimizer batch after its forward pass."""

    logprob_P: torch.Tensor
    behaviour_P: torch.Tensor
    advantage_P: torch.Tensor
    keep_P: torch.Tensor
    figures: dict[str, float]


def update(policy: Policy, rollouts: Sequence[Rollout], settings: LearnerSection) -> dict[str, float]:
    """Take the optimizer steps of one update and return its mean figures; raises `Diverged` and leaves clean-up to the caller.

    Each rollout is used once: the batch is split into `optimizer_steps` parts, so that the later ones already see the earlier steps.
    """
    steps = min(settings.optimizer_steps, len(rollouts))
    reports = []
    for part in range(steps):
        batch = _forward(policy, rollouts[part::steps], settings)
        result = policy_loss(
            batch.logprob_P, batch.logprob_P.detach(), batch.behaviour_P, batch.advantage_P, batch.keep_P,
            clip_low=settings.clip_low, clip_high=settings.clip_high,
        )  # fmt: skip
        loss = float(result.loss.detach())
        if not math.isfinite(loss):
            raise Diverged("the policy loss is not finite")
        result.loss.backward()  # type: ignore[no-untyped-call]
        norm = policy.step(settings.grad_clip)
        if not math.isfinite(norm):
            raise Diverged("the gradient is not finite")
        if result.ess < 0.5:
            raise Diverged(f"the effective sample size fell to {result.ess:.2f}: the rollouts are too old for this policy")
        reports.append(
            batch.figures
            | {
                "policy_loss": loss,
                "approx_kl": result.approx_kl,
                "clipfrac": result.clipfrac,
                "importance_weight": result.importance_weight,
                "ess": result.ess,
                "grad_norm": norm,
            }
        )
    return {name: sum(r[name] for r in reports) / len(reports) for name in reports[0]}


def _forward(policy: Policy, rollouts: Sequence[Rollout], settings: LearnerSection) -> _Batch:
    logprobs, behaviours, advantages, keeps = [], [], [], []
    kls: list[float] = []
    entropy_sum = 0.0
    for rollout in rollouts:
        packed = policy.row(rollout.prompt, rollout.answers)
        logprob_P, entropy_P = policy.logprobs(packed, rollout.temperature)
        entropy_sum += float(entropy_P.sum())
        prox_P = logprob_P.detach()
        behaviour_P = torch.tensor([x for row in rollout.behaviour for x in row])
        reference_P = torch.tensor([x for row in rollout.reference for x in row])
        ratio_P = prox_P - reference_P
        rewards = [
            shaped(reward, ratio_P[span], beta=settings.kl_beta, budget_nats=settings.kl_budget_nats, hinge=settings.kl_hinge)
            for reward, span in zip(rollout.rewards, packed.spans, strict=True)
        ]
        advantages += _advantages(rewards)
        keeps += [torch.full((span.stop - span.start,), float(sequence_kept(prox_P[span], behaviour_P[span]))) for span in packed.spans]
        kls += [float(ratio_P[span].sum()) for span in packed.spans]
        logprobs.append(logprob_P)
        behaviours.append(behaviour_P)
    keep_P, logprob_P = torch.cat(keeps), torch.cat(logprobs)
    figures = {
        "kl_to_ref": sum(kls) / len(kls),
        "entropy": entropy_sum / max(1, len(logprob_P)),
        "score_mean": sum(sum(r.rewards) for r in rollouts) / sum(len(r.rewards) for r in rollouts),
        "kept": float(keep_P.mean()),
    }
    return _Batch(logprob_P, torch.cat(behaviours), torch.cat(whiten(advantages)), keep_P, figures)


def _advantages(rewards: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return token advantages of one group: what is still to come of an answer's reward, less the others' mean return."""
    totals_N = torch.stack([r.sum() for r in rewards])
    baseline_N = totals_N - leave_one_out(totals_N)
    return [gae(r, torch.zeros_like(r)) - b for r, b in zip(rewards, baseline_N, strict=True)]
