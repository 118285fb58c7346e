"""What must not stop the loop of learning: votes that it cannot use, files that it cannot read, operators who take something back."""

from pathlib import Path

import torch

from attune.frozen import fastest_dtype
from attune.types import Feedback, Kind, State
from learner import metrics
from learner.data import MAX_VOTES
from learner.replay import Replay
from tests.fixtures.world import World


def test_an_edit_longer_than_the_model_can_read_stops_nothing(world: World) -> None:
    cycle, seen = world.learner(), metrics.LONG_EDITS._value.get()
    one = world.interaction()
    world.store.write([one, world.vote(one, "word " * 3000, Kind.EDIT)])
    world.votes(5)
    cycle.once()
    assert (world.registry.champion("reward"), world.registry.champion("policy")) == (1, 1)
    assert cycle.edits == {}
    assert metrics.LONG_EDITS._value.get() == seen + 1
    world.store.write([world.vote(one, "The capital of France is Paris.", Kind.EDIT)])  # the same person, shorter
    cycle.once()
    assert len(cycle.edits) == 1
    assert metrics.LONG_EDITS._value.get() == seen + 1


def test_signals_that_nothing_learns_from_make_no_version_and_crowd_nobody_out(world: World) -> None:
    cycle = world.learner()
    world.votes(3)
    cycle.once()
    one = world.interaction()
    dwells = [Feedback(f"dwell-{n}", f"e-{n}", one.id, Kind.IMPLICIT, {"dwell": 3.0}, 0, 2.0) for n in range(MAX_VOTES)]
    world.store.write([one, *dwells])
    assert cycle.once() is False
    assert len(cycle.journal.signals()) == 3
    assert (world.registry.numbers("reward"), world.registry.numbers("policy")) == ([1], [])


def test_a_reward_version_that_was_rolled_back_is_not_made_again_from_the_same_votes(world: World) -> None:
    cycle = world.learner()
    for _ in range(2):
        world.votes(2)
        cycle.once()
    world.registry.roll_back("reward", by="operator", reason="test")
    for learner in (cycle, world.learner()):
        learner.once()
        assert learner.reward.version == world.registry.champion("reward") == 1
    world.votes(1)
    cycle.once()
    assert (cycle.reward.version, world.registry.state("reward", 2)) == (3, State.ROLLED_BACK)


def test_an_optimizer_state_that_cannot_be_read_costs_the_state_alone(world: World) -> None:
    cycle = world.learner()
    world.votes(5)
    cycle.once()
    (state,) = (world.config.home / "learner").glob("state-*.safetensors")
    state.write_bytes(state.read_bytes()[:100])  # the power went
    again = world.learner()
    assert again.at.policy == 1
    published = torch.cat([w.detach().flatten().float() for w in cycle.policy.weights]).bfloat16()
    assert torch.equal(torch.cat([w.detach().flatten().float() for w in again.policy.weights]).bfloat16(), published)
    world.votes(5)
    again.once()
    assert world.registry.champion("policy") == 2


def test_a_restart_does_not_try_the_same_trunk_again(world: World) -> None:
    cycle = world.learner()
    cycle.refit.due_at = 4
    world.votes(5)
    cycle.once()
    cycle.refit.wait()
    assert world.learner().refit.due_at == cycle.refit.due_at == 8


def test_a_past_with_a_diverged_update_can_be_made_again(tmp_path: Path, tiny_model: Path) -> None:
    """Its rollouts were used up, though no version tells of it."""
    world = World(tmp_path, tiny_model, dtype=fastest_dtype())
    cycle = world.learner()
    for shift in (-3.0, 0.0):
        world.votes(5, shift=shift)
        cycle.once()
    assert world.registry.version("policy", 1).report["groups"] == 5
    assert [o.same for o in Replay(world.config, tmp_path / "again").until(1)] == [True, True, True]
    world.store.close()
