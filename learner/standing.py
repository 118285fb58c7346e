"""Where the learner stands, read from the registry alone: what is live, and which votes and rollouts were used for it."""

from dataclasses import dataclass

from attune.registry import Registry
from attune.types import State


@dataclass(frozen=True, slots=True)
class Standing:
    """Champions, and the store positions up to which things were used; all 0 at the very beginning."""

    policy: int = 0
    reward: int = 0
    reward_through: int = 0
    """Votes up to here led to a reward version that became champion, rolled back since or not."""
    trained_through: int = 0
    """Votes up to here are in the policy champion."""
    tried_through: int = 0
    """Votes up to here led to a policy version that was judged, whether it passed or not."""
    used_through: int = 0
    """Interactions up to here were offered to such a version: none is offered twice."""


def read(registry: Registry) -> Standing:
    """Return where the registry says that learning stands. A version that was never judged, since its learner died, counts for nothing."""
    policy, reward, log = registry.champion("policy"), registry.champion("reward"), registry.log()
    judged = {p.version for p in log if p.kind == "policy" and p.move in (State.CHAMPION, State.REJECTED)}
    versions = [registry.version("policy", number) for number in sorted(judged)]
    fitted = max((p.version for p in log if p.kind == "reward" and p.move is State.CHAMPION), default=0)
    return Standing(
        policy=policy,
        reward=reward,
        reward_through=registry.version("reward", fitted).trained_through if fitted else 0,
        trained_through=registry.version("policy", policy).trained_through if policy else 0,
        tried_through=max((v.trained_through for v in versions), default=0),
        used_through=max((int(v.report.get("interactions_through", 0)) for v in versions), default=0),
    )
