"""What a replay must see through: reward models taken back, signals that teach nothing, and a past that went another way."""

from dataclasses import replace
from pathlib import Path

import pytest

from attune.frozen import fastest_dtype
from attune.types import Kind, State
from learner import replay
from learner.replay import Replay
from tests.fixtures.world import QUICK, World


@pytest.fixture
def world(tmp_path: Path, tiny_model: Path) -> World:
    """Return people and a base model in the dtype that a replay computes in."""
    return World(tmp_path, tiny_model, QUICK.model_copy(update={"optimizer_steps": 2}), fastest_dtype())


def different(world: World, until: int, folder: Path) -> list[str]:
    return [f"{o.version.kind} {o.version.number}" for o in Replay(world.config, folder).until(until) if not o.same]


def test_a_reward_model_was_taken_back_before_the_policy_was_made(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cycle = world.learner()
    for votes in (3, 3):
        monkeypatch.setattr(cycle.readiness, "ready", lambda *_, **__: False)
        world.votes(votes)
        cycle.once()
    world.registry.roll_back("reward", by="operator", reason="a matter of taste")
    monkeypatch.undo()
    cycle.once()
    assert world.registry.champion("policy") == 1
    assert world.registry.version("policy", 1).reward_version == 1
    world.votes(5, version=1)
    cycle.once()
    assert different(world, 2, tmp_path / "again") == []
    world.store.close()


def test_version_0_after_a_roll_back_and_a_restart_is_version_0(world: World, tmp_path: Path) -> None:
    cycle = world.learner()
    for round_ in range(3):
        world.votes(5, version=cycle.at.policy)
        cycle.once()
        if round_ == 0:
            world.registry.roll_back("policy", by="operator", reason="a matter of taste")
            cycle = world.learner()
    assert different(world, 3, tmp_path / "again") == []
    world.store.close()


def test_a_signal_that_teaches_nothing_may_come_again(world: World, tmp_path: Path) -> None:
    cycle, asked = world.learner(), world.interaction()
    world.votes(5)
    copied = world.vote(asked, "copied", Kind.IMPLICIT)
    world.store.write([asked, copied])
    cycle.once()
    world.store.write([replace(copied, event_id="later", value="dwell")])
    world.votes(5, version=1)
    cycle.once()
    assert different(world, 2, tmp_path / "again") == []
    world.store.close()


def test_what_comes_after_the_first_difference_is_not_compared(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cycle = world.learner()
    for _ in range(3):
        world.votes(5, version=cycle.at.policy)
        cycle.once()
    unjudged = world.registry.publish("policy", {"x": b""}, parent=3, base_model="m", base_revision="", trained_through=0, report={})
    strict = world.config.model_copy(update={"learner": world.config.learner.model_copy(update={"kl_limit_nats": 1e-9})})
    outcomes = list(Replay(strict, tmp_path / "again").until(3))
    assert [(o.version.kind, o.same, o.state) for o in outcomes][-1] == ("policy", False, State.REJECTED)
    assert [o.version.number for o in outcomes if o.version.kind == "policy"] == [1]
    monkeypatch.setattr(replay.configuration, "load", lambda _: world.config)
    monkeypatch.setattr(replay, "setup_logging", lambda _: None)
    assert replay.main(["--until", str(unjudged.number)]) == 2
    assert "was never judged" in capsys.readouterr().err
    world.store.close()
