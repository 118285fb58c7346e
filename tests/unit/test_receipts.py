"""Receipts: what a person is told of a vote, from the registry's log alone."""

from pathlib import Path
from typing import Any

import pytest

from attune.registry import Registry
from attune.types import ArtifactKind, Feedback, Kind
from feedback.views import StoredFeedback
from serve.receipts import receipt
from serve.slot import Policy, Slots


def feedback(event: str = "e-1", at: float = 1.0) -> Feedback:
    return Feedback("fb-1", event, "chatcmpl-1", Kind.THUMB, 1, 0, at)


def stored(position: int, in_force: bool = True, unusable: str | None = None) -> StoredFeedback:
    return StoredFeedback(position=position, feedback=feedback(), in_force=in_force, stored_at=2.0, unusable=unusable)


class World:
    """A registry and a server's slots, moved by hand."""

    def __init__(self, root: Path) -> None:
        self.registry, self.slots = Registry(root), Slots()

    def champion(self, kind: ArtifactKind, trained_through: int) -> int:
        version = self.registry.publish(
            kind, {}, parent=0, base_model="m", base_revision="", trained_through=trained_through, report={}, reward_version=1
        )
        self.registry.promote(kind, version.number, by="test", reason="test")
        return version.number

    def serve(self, number: int) -> None:
        self.slots.add(Policy(number, number))
        self.slots.flip(number, 50.0 + number)

    def told(self, row: StoredFeedback | None, held: Feedback | None = None) -> dict[str, Any]:
        found = receipt("fb-1", row, held, self.registry, self.slots)
        assert found is not None
        return found


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_vote_that_nobody_heard_of_has_none(world: World) -> None:
    assert receipt("fb-1", None, None, world.registry, world.slots) is None


def test_received_then_stored_then_learned_then_live(world: World) -> None:
    assert world.told(None, feedback())["status"] == "received"
    assert world.told(stored(5))["status"] == "stored"
    world.champion("reward", 4)
    assert world.told(stored(5))["reward_version"] is None  # it was stored after that version looked
    reward = world.champion("reward", 5)
    world.champion("reward", 9)
    learned = world.told(stored(5))
    assert (learned["status"], learned["reward_version"], learned["policy_version"]) == ("learned", reward, None)
    world.champion("policy", 3)
    policy = world.champion("policy", 6)
    waiting = world.told(stored(5))
    assert (waiting["status"], waiting["policy_version"]) == ("learned", policy)  # promoted, and not yet proved here
    world.serve(policy)
    live = world.told(stored(5))
    assert (live["status"], live["live_since"]) == ("live", 50.0 + policy)


def test_live_since_is_when_a_policy_with_the_vote_first_answered_here(world: World) -> None:
    first, second = world.champion("policy", 5), world.champion("policy", 6)
    assert world.told(stored(5))["live_since"] is None  # promoted, but nobody was answered by it
    world.serve(second)  # the first was never loaded
    assert world.told(stored(5))["live_since"] == 50.0 + second
    world.slots.flip(second, 99.0)  # again, after a roll-back or since the engine was started anew
    assert world.told(stored(5))["live_since"] == 50.0 + second
    world.slots = Slots()  # another process: the promotion is the best that it knows
    world.serve(second)
    assert world.told(stored(5))["live_since"] == world.registry.live_since("policy", first)


def test_a_change_that_is_on_its_way_is_received_again(world: World) -> None:
    world.champion("reward", 5)
    assert world.told(stored(5), feedback("e-2", at=9.0))["status"] == "received"
    assert world.told(stored(5), feedback("e-1", at=1.0))["status"] == "learned"


def test_withdrawn_and_unusable(world: World) -> None:
    world.champion("policy", 9)
    assert world.told(stored(5, in_force=False))["status"] == "withdrawn"
    unusable = world.told(stored(5, unusable="there is no choice 7"))
    assert (unusable["status"], unusable["reason"], unusable["policy_version"]) == ("unusable", "there is no choice 7", None)


def test_rolled_back_until_a_later_version_has_it_again(world: World) -> None:
    first = world.champion("policy", 6)
    world.serve(first)
    world.registry.roll_back("policy", by="test", reason="test")
    world.slots.flip(0, 99.0)
    assert (world.told(stored(5))["status"], world.told(stored(5))["policy_version"]) == ("rolled_back", first)
    again = world.champion("policy", 7)
    world.serve(again)
    assert (world.told(stored(5))["status"], world.told(stored(5))["policy_version"]) == ("live", again)


def test_a_version_that_cannot_be_read_is_passed_over(world: World) -> None:
    number = world.champion("policy", 6)
    (world.registry.folder("policy", number) / "manifest.json").write_text("{")
    fresh = Registry(world.registry.root)
    found = receipt("fb-1", stored(5), None, fresh, world.slots)
    assert found is not None
    assert found["status"] == "stored"
