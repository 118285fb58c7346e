"""THE update: rollouts in, a stepped adapter and its figures out.

PPO on all candidates of served requests: leave-one-out baseline, a critic on what that leaves once it can tell, GAE, k1 KL in the reward
(counted from a base that is somewhat surer of itself) with a hinge on each answer's budget (counted from the base as it is), one scale for
the advantages of an optimizer batch, decoupled clipping with truncated importance weights. Left out: a value network of its own (the
critic reads the policy's hidden states), and a reference forward (serve made it). Each request is one packed row, and each row's gradient
is made before the next row is read: memory is that of one request.
Shapes: P tokens of one row, F features of the critic.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from attune.config import LearnerSection
from attune.errors import Diverged
from attune.packing import Packed
from learner.advantages import group_advantages, scale, shaped
from learner.losses import Sums, policy_loss, sequence_kept
from learner.policy import Forward, Policy
from learner.rollout import Rollout
from learner.sft import Example, nll

MAX_STEP_KL_NATS = 3.0
"""How far one update may move the policy, in nats per answer: steps that follow are left out beyond it."""
MIN_ESS = 0.5
"""Effective sample size, as a share, below which a part of the batch is left out: its rollouts are too old for this policy."""
GAE_LAMBDA = 0.95
"""Once the critic is trusted; 1 before."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the first forward pass over a rollout settled for every pass that follows."""

    prox_P: torch.Tensor
    advantage_P: torch.Tensor
    keep_P: torch.Tensor
    feature_PF: torch.Tensor
    return_P: torch.Tensor
    """What was still to come of the answer, less its baseline: what the critic learns."""
    kl_nats: float
    reference_nats: float
    entropy: float


def update(
    policy: Policy,
    rollouts: Sequence[Rollout],
    settings: LearnerSection,
    *,
    live: int | None = None,
    demonstrations: Sequence[Example] = (),
    between: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Take the optimizer steps of one update and return its figures; raises `Diverged` and leaves clean-up to the caller.

    The batch is split into `optimizer_steps` parts, and later parts are clipped around the policy as it was before the first step. For
    answers of the `live` version, which this policy is, the sampler's own log-probs say what that was; for others it costs a forward
    pass. A part that is too old for this policy is left out. A smaller update takes smaller steps, and so does one whose rewards nearly
    tie, since Adam's do not shrink with the evidence. `demonstrations` are spread over the parts, and make a step larger by no more than
    their weight. `between` is called between passes over rows, and whatever it raises ends the update.
    """
    steps = min(settings.optimizer_steps, len(rollouts))
    parts = [range(part, len(rollouts), steps) for part in range(steps)]
    share = min(1.0, len(rollouts) / settings.max_groups_per_update) ** 0.5
    prox = {i: _before(policy, rollouts[i], live, between) for part in parts[1:] for i in part}
    plans: dict[int, _Plan] = {}
    everything, norms = Sums(), list[float]()
    for number, part in enumerate(parts * settings.ppo_epochs):
        tokens = sum(len(answer) for i in part for answer in rollouts[i].answers)
        sums = Sums()
        for i in part:
            plans[i], row = _backward(policy, rollouts[i], plans.get(i), prox.get(i), tokens, settings, between)
            sums = sums + row
        everything = everything + sums
        if not math.isfinite(sums.loss):
            raise Diverged("the policy loss is not finite")
        if sums.ess < MIN_ESS:
            policy.forget_gradients()
            continue
        if sums.kl / max(1, sum(len(rollouts[i].answers) for i in part)) > MAX_STEP_KL_NATS:
            policy.forget_gradients()
            break
        shown, divisor = demonstrations[number % steps :: steps], scale(sums.deviation)
        _demonstrate(policy, shown, settings.demonstration_weight * divisor, between)
        told = min(1.0, sums.deviation / divisor + settings.demonstration_weight * bool(shown))
        norms.append(policy.step(settings.grad_clip, 1.0 / divisor, share * told))
        if not math.isfinite(norms[-1]):
            raise Diverged("the gradient is not finite")
    if not norms:
        raise Diverged(f"every rollout is too old for this policy: their effective sample size is {everything.ess:.2f}")
    learned = policy.critic.learn(
        torch.cat([plan.feature_PF for plan in plans.values()]), torch.cat([plan.return_P for plan in plans.values()])
    )
    steps_taken = {"grad_norm": norms[-1], "steps": float(len(norms)), "kept": everything.kept / everything.tokens}
    return everything.means() | learned | _figures(rollouts, plans) | steps_taken


def _demonstrate(policy: Policy, examples: Sequence[Example], weight: float, between: Callable[[], None]) -> None:
    """Add the gradient of `weight` x the mean loss of some demonstrations."""
    for example in examples:
        between()
        (nll(policy, example) * (weight * example.weight / len(examples))).backward()  # type: ignore[no-untyped-call]


def _before(policy: Policy, rollout: Rollout, live: int | None, between: Callable[[], None]) -> torch.Tensor:
    """Return the log-probs of a rollout's answers under the policy as it stands; NaN where the sampler did not know."""
    if rollout.policy_version == live:
        return torch.tensor([x for row in rollout.behaviour for x in row])
    between()
    with torch.no_grad():
        return policy.logprobs(policy.row(rollout.prompt, rollout.answers), rollout.temperature)[0]


def _backward(
    policy: Policy,
    rollout: Rollout,
    plan: _Plan | None,
    prox_P: torch.Tensor | None,
    tokens: int,
    settings: LearnerSection,
    between: Callable[[], None],
) -> tuple[_Plan, Sums]:
    """Add one rollout's gradient to the policy's, for a loss that is the mean over `tokens` of an unscaled advantage."""
    between()
    packed = policy.row(rollout.prompt, rollout.answers)
    seen = policy.forward(packed, rollout.temperature)
    plan = plan or _plan(policy, rollout, packed, seen, prox_P, settings)
    loss, sums = policy_loss(
        seen.logprob_P, plan.prox_P, torch.tensor([x for row in rollout.behaviour for x in row]), plan.advantage_P, plan.keep_P,
        clip_low=settings.clip_low, clip_high=settings.clip_high,
    )  # fmt: skip
    between()
    (loss / tokens).backward()  # type: ignore[no-untyped-call]
    return plan, sums


def _plan(policy: Policy, rollout: Rollout, packed: Packed, seen: Forward, prox_P: torch.Tensor | None, settings: LearnerSection) -> _Plan:
    logprob_P, critic = seen.logprob_P.detach(), policy.critic
    prox_P = logprob_P if prox_P is None else torch.where(prox_P.isfinite(), prox_P, logprob_P)
    behaviour_P = torch.tensor([x for row in rollout.behaviour for x in row])
    reference_P = torch.tensor([x for row in rollout.reference for x in row])
    ratio_P = prox_P - reference_P
    drift_P = prox_P - torch.tensor([x for row in rollout.sharp or rollout.reference for x in row])
    prices = {"beta": settings.kl_beta, "budget_nats": settings.kl_budget_nats, "hinge": settings.kl_hinge}
    rewards = [
        shaped(reward, drift_P[span], float(ratio_P[span].sum()), **prices)
        for reward, span in zip(rollout.rewards, packed.spans, strict=True)
    ]
    feature_PF = critic.features(seen.hidden_PH)
    value_P, nothing_P = critic.values(feature_PF), torch.zeros(len(logprob_P))
    advantages = group_advantages(rewards, [value_P[span] for span in packed.spans], GAE_LAMBDA if critic.trusted else 1.0)
    to_come = group_advantages(rewards, [nothing_P[span] for span in packed.spans], 1.0)
    kept = [float(sequence_kept(prox_P[span], behaviour_P[span])) for span in packed.spans]
    return _Plan(
        prox_P=prox_P,
        advantage_P=torch.cat(advantages),
        keep_P=torch.cat([torch.full((s.stop - s.start,), k) for s, k in zip(packed.spans, kept, strict=True)]),
        feature_PF=feature_PF,
        return_P=torch.cat(to_come),
        kl_nats=float(ratio_P.sum()),
        reference_nats=float(reference_P.sum()),
        entropy=float(seen.entropy_P.sum()),
    )


def _figures(rollouts: Sequence[Rollout], plans: dict[int, _Plan]) -> dict[str, float]:
    used = [rollouts[i] for i in plans]
    answers = max(1, sum(len(rollout.answers) for rollout in used))
    tokens = max(1, sum(len(plan.prox_P) for plan in plans.values()))
    said = {name: [v for rollout in used for v in rollout.terms[name]] for name in used[0].terms}
    return {f"term_{name}": sum(values) / answers for name, values in said.items()} | {
        "kl_to_ref": sum(plan.kl_nats for plan in plans.values()) / answers,
        "base_logprob": sum(plan.reference_nats for plan in plans.values()) / tokens,
        "entropy": sum(plan.entropy for plan in plans.values()) / tokens,
        "length_mean": tokens / answers,
        "score_mean": sum(sum(rollout.rewards) for rollout in used) / answers,
    }
