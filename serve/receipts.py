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
        "reason": None,
    }
    if stored is None or stored.feedback.event_id != feedback.event_id:
        return data
    data |= {"status": "stored", "stored_at": stored.stored_at}
    if not stored.in_force:
        return data | {"status": "withdrawn"}
    if stored.unusable is not None:
        return data | {"status": "unusable", "reason": stored.unusable}
    data["reward_version"] = _first_with(registry, "reward", stored.position)
    policy = _first_with(registry, "policy", stored.position)
    if policy is not None:
        if slots.live < policy:
            return data | {"status": "learned", "policy_version": policy}
        return data | {"status": "live", "policy_version": policy, "live_since": _live_since(registry, slots, policy)}
    if (rolled_back := _rolled_back_with(registry, stored.position)) is not None:
        return data | {"status": "rolled_back", "policy_version": rolled_back}
    return data | {"status": "learned"} if data["reward_version"] is not None else data


def _first_with(registry: Registry, kind: ArtifactKind, position: int) -> int | None:
    """Return the first champion (still in the line of champions) that learned from everything up to a store position."""
    found = None
    for number in registry.champions(kind):
        if number == 0 or not _contains(registry, kind, number, position):
            break
        found = number
    return found


def _live_since(registry: Registry, slots: Slots, policy: int) -> float | None:
    """Return when this server first answered by a policy or one that followed it.

    Of what was promoted before the server started, the promotion is the best that is known.
    """
    for number in sorted(n for n in registry.champions("policy") if policy <= n <= slots.live):
        promoted = registry.live_since("policy", number)
        began = promoted if promoted is not None and promoted < slots.started else slots.live_since.get(number)
        if began is not None:
            return began
    return None


def _rolled_back_with(registry: Registry, position: int) -> int | None:
    """Return the policy that was rolled back last of those that learned from everything up to a store position."""
    rolled_back = [p.version for p in registry.log() if p.kind == "policy" and p.move is State.ROLLED_BACK]
    return next((number for number in reversed(rolled_back) if _contains(registry, "policy", number, position)), None)


def _contains(registry: Registry, kind: ArtifactKind, number: int, position: int) -> bool:
    """Whether a version learned from everything up to a store position; one that cannot be read teaches nobody anything."""
    try:
        return registry.version(kind, number).trained_through >= position
    except RegistryError:
        return False
