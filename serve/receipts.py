"""How far a vote has come: received -> stored -> in a reward version -> in a policy version -> live. Pure but for reading the registry."""

from typing import Any

from attune.errors import RegistryError
from attune.registry import Registry
from attune.types import ArtifactKind, Feedback, State
from feedback.views import StoredFeedback
from serve.slot import Slots


def receipt(ident: str, stored: StoredFeedback | None, held: Feedback | None, registry: Registry, slots: Slots) -> dict[str, Any] | None:
    """Return the receipt of a vote, or None if nobody has heard of it.

    `held` is what this server acknowledged and `stored` what the store holds; where they differ the newer one is on its way.
    """
    feedback = held if stored is None or (held and held.received_at > stored.feedback.received_at) else stored.feedback
    if feedback is None:
        return None
    data: dict[str, Any] = {
        "id": ident,
        "interaction_id": feedback.interaction_id,
        "kind": feedback.kind,
        "value": feedback.value,
        "choice": feedback.choice,
        "status": "received",
        "received_at": feedback.received_at,
        "stored_at": None,
        "reward_version": None,
        "policy_version": None,
        "live_since": None,
    }
    if stored is None or stored.feedback.event_id != feedback.event_id:
        return data
    data |= {"status": "stored", "stored_at": stored.stored_at}
    if not stored.in_force:
        return data | {"status": "withdrawn"}
    if stored.unusable is not None:
        return data | {"status": "unusable"}
    data["reward_version"] = _first_with(registry, "reward", stored.position)
    policy = _first_with(registry, "policy", stored.position)
    if policy is not None:
        since = slots.live_since.get(policy) or registry.live_since("policy", policy)
        return data | {"status": "live" if slots.live >= policy else "learned", "policy_version": policy, "live_since": since}
    if _rolled_back_with(registry, stored.position):
        return data | {"status": "rolled_back"}
    return data | {"status": "learned"} if data["reward_version"] is not None else data


def _first_with(registry: Registry, kind: ArtifactKind, position: int) -> int | None:
    """Return the first champion (still in the line of champions) that learned from everything up to a store position."""
    found = None
    for number in registry.champions(kind):
        if number == 0 or not _contains(registry, kind, number, position):
            break
        found = number
    return found


def _rolled_back_with(registry: Registry, position: int) -> bool:
    return any(
        p.kind == "policy" and p.move is State.ROLLED_BACK and _contains(registry, "policy", p.version, position) for p in registry.log()
    )


def _contains(registry: Registry, kind: ArtifactKind, number: int, position: int) -> bool:
    """Whether a version learned from everything up to a store position; one that cannot be read teaches nobody anything."""
    try:
        return registry.version(kind, number).trained_through >= position
    except RegistryError:
        return False
