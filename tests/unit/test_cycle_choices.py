"""What a cycle hands on: which rollouts, checks and edits an update gets, and which seed, temperature and weights a fit gets."""

from pathlib import Path
from typing import Any

import pytest

from attune.types import Interaction, Kind
from learner import challenger, cycle, reward_trainer
from tests.fixtures.world import QUICK, World

Calls = list[tuple[tuple[Any, ...], dict[str, Any]]]


def recorded(monkeypatch: pytest.MonkeyPatch, place: Any, name: str) -> Calls:
    """Have every call of a function written down, and carried out."""
    calls, real = Calls(), getattr(place, name)

    def call(*given: Any, **named: Any) -> Any:
        calls.append((given, named))
        return real(*given, **named)

    monkeypatch.setattr(place, name, call)
    return calls


def voted(world: World, number: int, **more: Any) -> list[Interaction]:
    made = [world.interaction(**more) for _ in range(number)]
    world.store.write([*made, *map(world.vote, made)])
    return made


def tiny(tmp_path: Path, model: Path, **settings: Any) -> World:
    return World(tmp_path, model, QUICK.model_copy(update=settings))


def test_an_update_takes_the_newest_groups_that_it_has_room_for(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, updates = tiny(tmp_path, tiny_model, max_groups_per_update=2), recorded(monkeypatch, challenger, "train")
    learner, made = world.learner(), voted(world, 5)
    learner.once()
    assert [rollout.interaction_id for rollout in updates[0][0][1]] == [i.id for i in made[-2:]]
    world.store.close()


def test_the_gate_looks_at_the_newest_answers_that_were_held_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    updates, learner = recorded(monkeypatch, challenger, "train"), world.learner()
    held, made = voted(world, 4, held=True), voted(world, 5)
    learner.once()
    assert [rollout.interaction_id for rollout in updates[0][0][2]] == [i.id for i in held[-2:]]
    assert {rollout.interaction_id for rollout in updates[0][0][1]} == {i.id for i in made}, "and nothing that was held out is trained on"


def test_after_a_roll_back_the_gate_compares_with_what_is_live_again(world: World) -> None:
    learner = world.learner()
    voted(world, 2, held=True)
    voted(world, 5)
    learner.once()
    voted(world, 5, version=1)
    learner.once()
    reports = [world.registry.version("policy", number).report for number in world.registry.numbers("policy")]
    assert world.registry.champion("policy") == len(reports) == 2
    assert reports[1]["kl_before"] == pytest.approx(reports[0]["kl_after"])
    world.registry.roll_back("policy", by="operator", reason="test")
    learner.once()
    voted(world, 5, version=1)
    learner.once()
    assert world.registry.version("policy", 3).parent == 1
    assert world.registry.version("policy", 3).report["kl_before"] == pytest.approx(reports[0]["kl_after"], rel=0.05)


def test_a_fit_on_a_new_trunk_is_whole(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = world.learner()
    world.votes(24)
    learner.once()
    fits, reward = recorded(monkeypatch, reward_trainer, "fit"), learner.reward
    follows = reward_trainer.Spread(reward.particles_KD, {"all": 1.0}, reward.mean_D)
    monkeypatch.setattr(reward_trainer, "plan", lambda *_: (reward_trainer.PROBES, follows))
    learner.refit.ready = learner.refit.make(learner.lesson())
    fits.clear()
    world.votes(1)
    learner.once()
    world.votes(1)
    learner.once()
    assert [named["spread"] for _, named in fits] == [None, follows]


def test_answers_of_versions_long_gone_are_not_learned_from(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, updates = tiny(tmp_path, tiny_model, max_staleness_versions=1), recorded(monkeypatch, challenger, "train")
    learner = world.learner()
    for version in (0, 1, 2):
        voted(world, 5, version=version)
        assert learner.once()
    old, new = voted(world, 2, version=0), voted(world, 3, version=3)
    assert learner.once()
    assert [rollout.interaction_id for rollout in updates[-1][0][1]] == [i.id for i in new]
    assert old[0].policy_version == 0
    world.store.close()


def test_an_edit_rides_along_once_and_no_more_than_there_is_room_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cycle, "MAX_EDITS", 2)
    updates, learner = recorded(monkeypatch, challenger, "train"), world.learner()
    texts = ["Two and two make four.", "The capital of France is Paris.", "A cat sat on a mat."]
    edited = [world.interaction() for _ in texts]
    world.store.write([*edited, *(world.vote(i, text, Kind.EDIT) for i, text in zip(edited, texts, strict=True))])
    for _ in range(2):
        voted(world, 5)
        assert learner.once()
    first, second = ([e.prompt for e in named["demonstrations"]] for _, named in updates)
    assert first == [i.prompt_token_ids for i in edited[-2:]]
    assert second == []


def test_every_fit_draws_anew_and_is_calibrated_by_what_was_foretold(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fits, learner = recorded(monkeypatch, reward_trainer, "fit"), world.learner()
    monkeypatch.setattr(learner.prequential, "temperature", lambda: 1.0 + len(fits))
    for _ in range(2):
        voted(world, 3)
        learner.once()
    assert [named["temperature"] for _, named in fits] == [1.0, 2.0]
    assert len({given[3] for given, _ in fits}) == 2


def test_an_old_vote_counts_less_in_a_fit(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, fits = tiny(tmp_path, tiny_model, vote_half_life_s=1.0), recorded(monkeypatch, reward_trainer, "fit")
    voted(world, 3)  # a second apart
    world.learner().once()
    first, second, third = (signal.weight for signal in fits[0][0][0].signals)
    assert first == pytest.approx(second / 2)
    assert second == pytest.approx(third / 2)
    world.store.close()
