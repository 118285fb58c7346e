"""From rollouts to a challenger: step the policy, bound the step, and gather what the gate and everybody's checks need.

Leaves the judgement to `gate` and the registry to `cycle`. Whatever goes wrong, the policy stands again where it stood.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from attune.config import LearnerSection
from attune.errors import Diverged
from learner import evaluate, ppo, publish
from learner.evaluate import Looks
from learner.policy import Policy, Snapshot
from learner.rollout import Rollout
from learner.sft import Example

MAX_HALVINGS = 3
MAX_CHECKS = 2
"""Groups that a challenger is compared on with the champion."""


@dataclass(frozen=True, slots=True)
class Challenger:
    """A trained candidate: what to publish, its figures, what it thinks of answers, and the weights to go back to if it is refused."""

    files: dict[str, bytes]
    report: dict[str, Any]
    seen: Looks
    before: Snapshot


def train(
    policy: Policy,
    rollouts: Sequence[Rollout],
    held_out: Sequence[Rollout],
    settings: LearnerSection,
    *,
    live: int,
    end_token: int | None,
    about: dict[str, Any],
    demonstrations: Sequence[Example] = (),
    between: Callable[[], None] = lambda: None,
    known: Looks | None = None,
) -> Challenger:
    """Return a challenger trained on the rollouts; raises `Diverged`, or what `between` raises, with the policy as it was before.

    `live` is the version that the policy is. The newest `held_out` groups are looked at before and after, never trained on; while they are
    fewer than `MAX_CHECKS`, rollouts stand in for the rest: one group alone says too little. `about` is what the report should say
    besides. `between` is called every now and then, between two passes. `known` is what this policy was found to think of answers when it
    was made.
    """
    checks = [*rollouts[:MAX_CHECKS], *held_out][-MAX_CHECKS:]
    probes = publish.fingerprint_probes(rollouts)
    old = policy.snapshot()
    try:
        before = evaluate.look(policy, checks, end_token, between, known)
        parent_logprobs = publish.probe_logprobs(policy, probes)
        figures = ppo.update(policy, rollouts, settings, live=live, demonstrations=demonstrations, between=between)
        after, moved = _bounded(policy, checks, end_token, before, old, between)
        report = about | figures | _compared(checks, before, after) | {"step_kl": moved}
        return Challenger(publish.files(policy, probes, parent_logprobs, report), report, after, old)
    except BaseException:
        policy.restore(old)
        raise


def _bounded(
    policy: Policy, checks: Sequence[Rollout], end_token: int | None, before: Looks, old: Snapshot, between: Callable[[], None]
) -> tuple[Looks, float]:
    """Return what the stepped policy thinks, having halved the step until it moved no further than allowed."""
    for _ in range(1 + MAX_HALVINGS):
        after = evaluate.look(policy, checks, end_token, between)
        moved = evaluate.step_kl(checks, before, after)
        if moved <= ppo.MAX_STEP_KL_NATS:
            return after, moved
        policy.retreat(old, 0.5)
    raise Diverged(f"the update moved the policy by {moved:.1f} nats per answer even after halving it {MAX_HALVINGS} times")


def _compared(checks: Sequence[Rollout], before: Looks, after: Looks) -> dict[str, float]:
    sides = (("before", before), ("after", after))
    return {f"{name}_{when}": value for when, seen in sides for name, value in evaluate.figures(checks, seen).items()}
