"""What must not stop the loop of learning: votes that it cannot use, files that it cannot read, operators who take something back."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attune import halt
from attune.errors import RegistryError
from attune.frozen import fastest_dtype
from attune.reward import RewardModel
from attune.types import Feedback, Interaction, Kind, Sampling, State, Withdrawal
from learner import cycle as looping
from learner import metrics, readiness, reward_trainer, turn
from learner import policy as policies
from learner.data import MAX_VOTES
from learner.replay import Replay
from tests.fixtures.world import QUICK, World


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


def test_one_persons_thousand_votes_leave_everybody_elses_in_the_fit(world: World) -> None:
    journal = world.learner().journal
    quiet, loud = world.interaction(), world.interaction()
    few = [replace(world.vote(quiet, 1, Kind.THUMB), id=f"few-{n}", user=f"user {n % 5}") for n in range(20)]
    many = [replace(world.vote(loud, 1, Kind.THUMB), id=f"many-{n}", user="loud") for n in range(MAX_VOTES + 200)]
    world.store.write([quiet, loud, *few, *many])
    journal.refresh(0)
    assert Counter(s.interaction_id for s in journal.signals()) == {quiet.id: 20, loud.id: MAX_VOTES - 20}
    assert [f.id for f in journal._newest()][-500:] == [f.id for f in many[-500:]]
    world.store.write([replace(few[0], event_id="again", user="loud"), Withdrawal("w", few[1].id, quiet.id, 1e6)])
    journal.refresh(0)
    assert Counter(s.interaction_id for s in journal.signals()) == {quiet.id: 19, loud.id: MAX_VOTES - 19}


def test_votes_whose_answers_could_not_be_read_at_once_are_learned_at_the_next_try(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    cycle = world.learner()
    world.votes(1)
    cycle.once()
    world.votes(2)
    with monkeypatch.context() as gone:
        gone.setattr(world.store, "interactions", raising(OSError("the database went away")))
        with pytest.raises(OSError, match="the database went away"):
            cycle.once()
    cycle.once()
    assert len(cycle.journal.signals()) == 3
    assert len(cycle.prequential.figures()) > 0  # they were predicted, too


def test_a_request_that_cannot_be_looked_at_keeps_no_other_from_being_learned(world: World) -> None:
    cycle, count = world.learner(), metrics.UNREADABLE._value.get()
    odd = world.interaction()
    odd = replace(odd, candidates=tuple(replace(c, features=None, token_ids=(10**6,)) for c in odd.candidates))
    world.store.write([odd, world.vote(odd)])
    world.votes(2)
    for _ in range(2):
        cycle.once()
    assert {s.interaction_id for s in cycle.journal.signals()} == cycle.journal.judged.keys()
    assert (len(cycle.journal.judged), cycle.reward.version) == (2, 1)
    assert metrics.UNREADABLE._value.get() == count + 1


def test_wires_are_armed_by_as_few_requests_as_a_first_update_takes(world: World) -> None:
    cycle = world.learner()
    world.votes(3)  # twelve typical answers: too few to compare with
    world.votes(3, version=1)
    for n in range(40):
        made = world.interaction(version=2, messages=({"role": "user", "content": f"question {n}"},))
        world.store.write([replace(made, candidates=tuple(replace(c, text="") for c in made.candidates))])
    cycle.once()
    halted = halt.read(world.config.home)
    assert halted is not None
    assert any("empty answers" in reason for reason in halted.reasons)


def test_rollouts_that_teach_nothing_are_not_drawn_again_and_again(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, drawn = World(tmp_path, tiny_model, QUICK.model_copy(update={"top_up_groups": 4})), list[int]()

    def top_up(prompts: Sequence[Interaction]) -> int:
        drawn.append(len(prompts))
        alike = [world.interaction(prompt=p.prompt_token_ids) for p in prompts]
        world.store.write([replace(i, candidates=tuple(replace(i.candidates[0], index=k) for k in range(4))) for i in alike])
        return len(prompts)

    monkeypatch.setattr(readiness, "TOP_UP_WAIT_S", 0.0)
    cycle = world.learner(top_up=top_up)
    world.votes(5)
    cycle.once()
    assert world.registry.champion("policy") == 1
    world.store.write([world.vote(i, kind=Kind.THUMB, value=1) for i in cycle.journal.judged.values()])
    for _ in range(10):
        cycle.once()
    assert sum(drawn) <= 8, "the first that were drawn, and those that had come too late"
    before = sum(drawn)
    world.store.write([world.vote(i, kind=Kind.THUMB, value=-1) for i in cycle.journal.judged.values()])
    for _ in range(10):
        cycle.once()
    assert before < sum(drawn) <= before + 8, "somebody has voted since"
    world.store.close()


def test_prompts_are_drawn_anew_whatever_clients_sampled_with(world: World) -> None:
    cycle = world.learner()
    made = [world.interaction(sampling=sampling) for sampling in (Sampling(0.7, top_p=0.9), Sampling(0.0))]
    held = world.interaction(held=True)
    world.store.write([*made, held, *map(world.vote, [*made, held])])
    cycle.once()
    assert [i.id for i in cycle.journal.newest_prompts(4)] == [i.id for i in made][::-1], "but not for what is held out"


def test_edits_that_piled_up_come_a_few_at_a_time_and_are_forgotten_with_their_votes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    cycle = world.learner()
    made = [world.interaction() for _ in range(looping.MAX_EDITS + 8)]
    edits = [world.vote(i, f"Paris, of course, say the {n}.", Kind.EDIT) for n, i in enumerate(made)]
    world.store.write([*made, *edits])
    cycle._read()
    cycle._look_at_edits()
    assert len(cycle.edits) == len(made)
    newest = [i.prompt_token_ids for i in made[-looping.MAX_EDITS :]]
    assert [example.prompt for example in cycle._demonstrations()] == newest
    with monkeypatch.context() as small:
        small.setattr(looping, "MAX_ROW_TOKENS", len(newest[0]))  # the gradient of a longer row would take too much memory
        assert cycle._demonstrations() == []
    world.store.write([Withdrawal(f"w-{e.id}", e.id, e.interaction_id, 1e6) for e in edits[1:]])
    cycle._read()
    cycle._look_at_edits()
    assert list(cycle.edits) == [edits[0].id]


def test_what_a_full_disk_left_half_written_does_not_keep_it_full(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    cycle, folder = world.learner(), world.config.home / "learner"

    def full(file: Path, data: bytes) -> None:
        file.write_bytes(data[:100])
        raise OSError("no space left on device")

    world.votes(5)
    with monkeypatch.context() as disk:
        disk.setattr(policies, "write_durably", full)
        with pytest.raises(OSError, match="no space left"):
            cycle.once()
    assert list(folder.glob("state-*")) == []
    cycle.once()
    assert [file.name for file in folder.glob("state-*")] == ["state-000002.safetensors"]
    for name in ("state-000001.safetensors", "state-000007.new"):  # a version that was rolled back, and a kill
        (folder / name).write_bytes(b"x")
    world.learner()
    assert [file.name for file in folder.glob("state-*")] == ["state-000002.safetensors"]


def test_a_trunk_that_cannot_be_read_leaves_the_one_in_force(world: World) -> None:
    eye = world.learner().eye
    eye.trunk, eye.trunk_version = (before := object()), 1  # type: ignore[assignment]
    with pytest.raises(RegistryError):
        eye.follow(2)
    assert (eye.trunk, eye.trunk_version) == (before, 1)


def raising(error: Exception) -> Any:
    """Return a function that raises an error, whatever it is called with."""

    def raises(*_: object, **__: object) -> None:
        raise error

    return raises


def test_with_many_votes_the_mean_follows_and_a_replay_too(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_trainer, "FEW_VOTES", 4)
    world = World(tmp_path, tiny_model, dtype=fastest_dtype())
    cycle = world.learner()
    for votes in (5, 1, 1, 5):
        world.votes(votes, version=cycle.at.policy)
        cycle.once()
        if votes == 1:
            cycle = world.learner()  # after a restart, too
    versions = [RewardModel.load(world.registry.folder("reward", number)) for number in world.registry.numbers("reward")]
    spreads = [model.particles_KD - model.mean_D for model in versions]
    assert np.allclose(spreads[1], spreads[0], atol=1e-6)
    assert np.allclose(spreads[2], spreads[0], atol=1e-6)
    assert not np.allclose(versions[1].mean_D, versions[0].mean_D, atol=1e-4)
    made = world.registry.numbers("policy")[-1]
    assert [f"{o.version.kind} {o.version.number}" for o in Replay(world.config, tmp_path / "again").until(made) if not o.same] == []
    world.store.close()


def test_what_was_foretold_is_known_after_a_restart(world: World) -> None:
    cycle = world.learner()
    for _ in range(2):
        world.votes(5, version=cycle.at.policy)
        cycle.once()
    figures = cycle.prequential.figures()
    assert figures["overall_predicted"] > 0
    again = world.learner()
    assert again.prequential.figures() == figures
    assert again.prequential.temperature() == cycle.prequential.temperature()
    (world.config.home / "learner" / "foretold.json").write_text('{"ranking": [[1')
    assert world.learner().prequential.figures() == {}


def test_after_a_roll_back_a_reward_version_names_all_votes_that_the_one_before_it_did_not_know(world: World) -> None:
    cycle = world.learner()
    world.votes(5)
    cycle.once()
    known = set(cycle.journal.votes)
    world.votes(2, version=1)
    cycle.once()
    world.registry.roll_back("reward", by="operator", reason="a matter of taste")
    world.votes(1, version=1)
    cycle.once()
    newest = world.registry.version("reward", world.registry.champion("reward"))
    assert (newest.parent, len(newest.events)) == (1, 3)
    assert set(newest.events) == set(cycle.journal.votes) - known


def test_while_somebody_else_makes_a_policy_the_learner_waits_its_turn(world: World) -> None:
    cycle = world.learner()
    world.votes(5)
    with turn.taken(world.config.home) as ours:
        assert ours
        cycle.once()
        assert (world.registry.champion("reward"), world.registry.champion("policy")) == (1, 0)
    cycle.once()
    assert world.registry.champion("policy") == 1


def test_who_waits_for_a_turn_says_so_and_gets_it(tmp_path: Path) -> None:
    said = []
    with turn.taken(tmp_path, lambda: said.append("too early")) as ours:
        assert ours
        with turn.taken(tmp_path) as not_ours:
            assert not not_ours
    held = turn.taken(tmp_path)
    held.__enter__()

    def give_back() -> None:
        said.append("waiting")
        held.__exit__(None, None, None)

    with turn.taken(tmp_path, give_back) as ours:
        assert ours
    assert said == ["waiting"]


def test_a_replay_takes_over_what_an_operator_overtook(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, tiny_model, dtype=fastest_dtype())
    cycle = world.learner()
    world.votes(5)
    cycle.once()
    between = cycle._between_passes

    def rolling_back() -> None:
        if world.registry.champion("policy"):
            world.registry.roll_back("policy", by="operator", reason="a matter of taste")
        between()

    with monkeypatch.context() as during:
        during.setattr(cycle, "_between_passes", rolling_back)
        world.votes(5, version=1)
        cycle.once()
    assert world.registry.state("policy", 2) is State.REJECTED
    for _ in range(2):
        world.votes(5, version=cycle.at.policy)
        cycle.once()
    assert world.registry.champion("policy") == 4
    outcomes = list(Replay(world.config, tmp_path / "again").until(4))
    assert [o.version.number for o in outcomes if o.version.kind == "policy"] == [1, 3, 4]
    assert [f"{o.version.kind} {o.version.number}" for o in outcomes if not o.same] == []
    world.store.close()


def test_votes_during_an_update_take_no_more_than_half_of_its_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    cycle = world.learner()
    world.votes(1)
    cycle.once()
    clock, fits = [100.0], list[float]()

    def fit() -> bool:
        fits.append(clock[0])
        clock[0] += 8.0
        cycle.at = replace(cycle.at, reward_through=cycle.journal.taught_position)
        return True

    monkeypatch.setattr(looping.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(cycle, "_learn_reward", fit)
    for _ in range(20):
        world.votes(1)
        cycle._between_passes()
        clock[0] += 1.0
    assert fits == [100.0, 116.0, 132.0], "eight seconds of fitting, then eight without"


def test_a_cycle_that_fails_is_tried_again_after_longer_and_longer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    cycle, waits = world.learner(), list[float]()
    outcomes = iter([OSError("the disk is full"), OSError("the disk is full"), False])

    def once() -> bool:
        outcome = next(outcomes)
        if isinstance(outcome, OSError):
            raise outcome
        cycle.stop.set()
        return outcome

    monkeypatch.setattr(cycle, "once", once)
    monkeypatch.setattr(cycle.stop, "wait", waits.append)
    cycle.run()
    poll = cycle.config.learner.poll_interval_s
    assert waits == [2 * poll + 1, 4 * poll + 3, poll]
