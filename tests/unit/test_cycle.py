"""The loop of learning over a real store and registry, with a tiny model: what it publishes, follows, survives and never does twice."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attune import halt
from attune.frozen import Answer, fastest_dtype, twin
from attune.types import EVALUATION, Interaction, Kind, Sampling, State, Withdrawal
from learner import metrics
from learner.cycle import Cycle
from learner.policy import Policy
from learner.replay import Replay
from learner.trunk_trainer import Stopped
from tests.fixtures.world import QUICK, World


def masters(cycle: Cycle) -> torch.Tensor:
    return torch.cat([m.detach().flatten() for m in cycle.policy.masters])


def test_votes_become_a_reward_version_and_enough_of_them_a_policy(world: World) -> None:
    cycle = world.learner()
    assert cycle.once() is False
    world.votes(3)
    assert cycle.once() is True
    assert (world.registry.champion("reward"), world.registry.champion("policy")) == (1, 0)
    longer, shorter = (world.interaction().candidates[k] for k in (3, 0))
    utility, _ = cycle.reward.utility([longer.features or b"", shorter.features or b""], [longer.text, shorter.text])
    assert utility[0] > utility[1]
    world.votes(2)
    assert cycle.once() is True
    assert (world.registry.champion("reward"), world.registry.champion("policy")) == (2, 1)
    version = world.registry.verify("policy", 1)
    assert (version.trained_through, version.reward_version) == (world.store.position(), 2)
    assert len(version.events) == 5
    assert version.report["groups"] == 5
    assert cycle.once() is False


def test_a_fingerprint_is_what_the_published_files_say(world: World) -> None:
    cycle = world.learner()
    world.votes(5)
    cycle.once()
    fresh = Policy(twin(world.network), world.config.model, "tiny", 1e-3, 9)
    parent = Policy(twin(world.network), world.config.model, "tiny", 1e-3, 9)
    fresh.load_adapter(world.registry.folder("policy", 1))
    sequences = json.loads((world.registry.folder("policy", 1) / "fingerprint.json").read_bytes())["sequences"]
    assert len(sequences) == 3
    for one in sequences:
        for policy, name in ((fresh, "logprobs"), (parent, "parent_logprobs")):
            with torch.no_grad():
                found, _ = policy.logprobs(policy.row(one["prompt_token_ids"], [one["token_ids"]]), 1.0)
            assert found.tolist() == pytest.approx(one[name], abs=0.05)  # published in bf16
        assert one["logprobs"] != one["parent_logprobs"]


def test_a_restart_repeats_nothing_and_goes_on_where_it_stood(world: World) -> None:
    first = world.learner()
    world.votes(5)
    first.once()
    again = world.learner()
    assert again.once() is False
    assert world.registry.numbers("reward") == [1]
    assert world.registry.numbers("policy") == [1]
    assert again.prequential.figures() == {}  # learned votes are not predicted
    assert torch.equal(masters(first), masters(again))
    assert again.reward.version == 1


def test_a_version_that_nobody_judged_is_made_anew(world: World) -> None:
    world.votes(5)
    world.registry.publish(
        "policy", {"adapter_model.safetensors": b"half"}, parent=0, base_model="tiny", base_revision="",
        trained_through=world.store.position(), report={"interactions_through": world.store.position()},
    )  # fmt: skip
    cycle = world.learner()
    cycle.once()
    assert world.registry.state("policy", 1) is State.PUBLISHED
    assert world.registry.champion("policy") == 2
    assert world.registry.version("policy", 2).report["groups"] == 5


def test_an_operators_roll_back_is_followed(world: World) -> None:
    cycle = world.learner()
    base = masters(cycle)
    world.votes(5)
    cycle.once()
    assert not torch.equal(masters(cycle), base)
    world.registry.roll_back("policy", by="operator", reason="test")
    world.registry.roll_back("reward", by="operator", reason="test")
    cycle.once()
    assert torch.equal(masters(cycle)[base == 0], base[base == 0])
    before = world.interaction().prompt_token_ids
    with torch.no_grad():
        found, _ = cycle.policy.logprobs(cycle.policy.row(before, [[5, 6]]), 0.7)
    assert found.tolist() == pytest.approx(list(world.base.look(before, [Answer([5, 6], True)], 0.7)[0].ref_logprobs), abs=1e-5)
    assert cycle.reward.version == world.registry.champion("reward")
    world.votes(5)
    cycle.once()
    assert world.registry.version("policy", world.registry.champion("policy")).parent == 0


def test_rollouts_from_a_rolled_back_version_are_not_used(world: World) -> None:
    cycle = world.learner()
    world.votes(5, version=7)
    cycle.once()
    assert (world.registry.numbers("reward"), world.registry.numbers("policy")) == ([1], [])
    world.votes(2)
    cycle.once()
    assert world.registry.champion("policy") == 1
    assert world.registry.version("policy", 1).report["groups"] == 2


def test_a_diverged_update_leaves_everything_as_it_was_and_the_next_votes_try_again(world: World) -> None:
    cycle = world.learner()
    before = masters(cycle)
    world.votes(5, shift=-3.0)
    cycle.once()
    assert world.registry.numbers("policy") == []
    assert world.registry.champion("reward") == 1
    assert torch.equal(masters(cycle), before)
    assert cycle.once() is False
    assert "too old" in str(halt.last_discarded(world.config.home, 0))  # and somebody can see why nothing goes on
    assert halt.last_discarded(world.config.home, 1) is None
    world.votes(5)
    cycle.once()
    assert world.registry.version("policy", 1).report["groups"] == 5


def test_what_ppo_cannot_use_does_not_poison_the_gate(world: World) -> None:
    cycle = world.learner()
    greedy = world.interaction(held=True, sampling=Sampling(0.0))
    world.store.write([greedy, world.interaction(held=True)])
    world.votes(5)
    cycle.once()
    assert world.registry.champion("policy") == 1


def test_votes_all_taken_back_leave_indifference(world: World) -> None:
    cycle = world.learner()
    world.votes(3)
    cycle.once()
    votes = [row.feedback for row in world.store.feedback_after(0)]
    world.store.write([Withdrawal(f"w-{v.id}", v.id, v.interaction_id, 1e3) for v in votes])
    cycle.once()
    assert cycle.reward.version == 2
    candidates = world.interaction().candidates
    mean, spread = cycle.reward.utility([c.features or b"" for c in candidates], [c.text for c in candidates])
    assert (abs(mean).max(), spread.max()) == (0.0, 0.0)
    assert cycle.once() is False


def test_a_judged_answer_without_features_is_looked_at_late(world: World) -> None:
    cycle = world.learner()
    looks = metrics.LATE_LOOKS._value.get()
    world.votes(2)
    one = world.interaction()
    bare = replace(one, candidates=tuple(replace(c, features=None, ref_logprobs=None) for c in one.candidates))
    world.store.write([bare, world.vote(bare)])
    cycle.once()
    assert metrics.LATE_LOOKS._value.get() == looks + 1
    assert len(cycle.journal.signals()) == 3
    assert cycle.journal.judged[one.id].candidates[2].features == one.candidates[2].features


def test_a_changed_edit_is_looked_at_again(world: World) -> None:
    cycle = world.learner()
    one = world.interaction()
    world.store.write([one, world.interaction(), world.vote(one, "Two and two make four.", Kind.EDIT)])
    cycle.once()
    (first,) = cycle.edits.values()
    world.store.write([world.vote(one, "The capital of France is Paris.", Kind.EDIT)])
    cycle.once()
    assert list(cycle.edits.values()) != [first]
    assert cycle.reward.version == 2


def test_probes_that_had_no_say_are_tried_again_only_now_and_then(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.reward_trainer.mattered", lambda report: ["all"])
    cycle, tried = world.learner(), []
    for votes in (5, 1, 3):  # the third time store position 8 is passed
        world.votes(votes)
        cycle.once()
        report = world.registry.version("reward", world.registry.champion("reward")).report
        tried.append({name for name in report if name.startswith("probe_")})
    assert tried[1] == {"probe_all"}
    assert len(tried[0]) > 1
    assert len(tried[2]) > 1


def test_a_vote_is_predicted_before_it_is_learned(world: World) -> None:
    cycle = world.learner()
    world.votes(3)
    cycle.once()
    assert cycle.prequential.figures() == {}
    world.votes(1)
    cycle.once()
    assert cycle.prequential.figures()["overall_accuracy"] >= 0.5


def test_a_vote_that_is_sent_again_or_changed_is_no_prediction(world: World) -> None:
    cycle, asked = world.learner(), world.interaction()
    world.votes(3)
    world.store.write([asked, world.vote(asked)])
    cycle.once()
    for value, news in (((3, 2, 1, 0), False), ((0, 1, 2, 3), True)):  # the model knows what this person said of these answers
        world.store.write([world.vote(asked, value=value)])
        assert cycle.once() is news
    assert cycle.prequential.figures() == {}


def test_answers_that_measure_teach_nothing_unless_they_are_voted_on(world: World) -> None:
    cycle = world.learner()
    measured = [world.interaction(conversation_id=EVALUATION) for _ in range(3)]
    world.store.write([*measured, world.interaction(held=True, conversation_id=EVALUATION)])
    world.votes(5)
    cycle.once()
    assert world.registry.version("policy", 1).report["groups"] == 5
    assert not cycle.journal.held_out
    assert {i.id for i in measured}.isdisjoint(cycle.journal.anchors)
    world.store.write([world.vote(measured[0])])
    cycle.once()
    assert world.registry.version("reward", 2).report["signals"] == 6


def vote_during_an_update(world: World, cycle: Cycle, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have three people vote while the next policy update is under way, one after the other; return the reward versions seen then."""
    fresh, between, seen = [world.interaction(version=cycle.at.policy) for _ in range(3)], cycle._between_passes, list[int]()

    def voting() -> None:
        cycle._not_before = 0.0
        if len(seen) < len(fresh):
            world.store.write([fresh[len(seen)], world.vote(fresh[len(seen)])])
        between()
        seen.append(world.registry.champion("reward"))

    with monkeypatch.context() as patch:
        patch.setattr(cycle, "_between_passes", voting)
        cycle.once()
    return seen[: len(fresh)]


def test_votes_that_come_during_an_update_do_not_wait_for_its_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    cycle = world.learner()
    world.votes(5)
    before = world.store.position()
    assert vote_during_an_update(world, cycle, monkeypatch) == [2, 3, 4]
    version = world.registry.verify("policy", 1)
    assert (version.reward_version, version.trained_through, len(version.events)) == (1, before, 5)  # made of what there was
    assert world.registry.version("reward", 4).trained_through == world.store.position()
    assert (cycle.at.policy, cycle.at.reward, len(cycle.journal.waiting)) == (1, 4, 3)
    world.votes(1, version=1)
    cycle.once()
    assert world.registry.version("policy", 2).report["groups"] == 4  # what came meanwhile is used by the next


def test_a_roll_back_during_an_update_is_not_undone_by_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    cycle = world.learner()
    world.votes(5)
    cycle.once()
    between = cycle._between_passes

    def rolling_back() -> None:
        if world.registry.champion("policy"):
            world.registry.roll_back("policy", by="operator", reason="a matter of taste")
        between()

    monkeypatch.setattr(cycle, "_between_passes", rolling_back)
    world.votes(5, version=1)
    cycle.once()
    assert (world.registry.champion("policy"), world.registry.state("policy", 2)) == (0, State.REJECTED)
    cycle.once()
    assert not masters(cycle).isnan().any()
    assert torch.equal(masters(cycle), masters(world.learner()))


def test_told_to_stop_it_forgets_the_step_and_the_next_learner_makes_it(world: World) -> None:
    world.votes(5)
    stopped = world.learner(stopped=True)
    before = masters(stopped)
    with pytest.raises(Stopped):
        stopped.once()
    assert torch.equal(masters(stopped), before)
    assert world.registry.numbers("policy") == []
    world.learner().once()
    assert world.registry.version("policy", 1).report["groups"] == 5


def test_few_votes_wait_their_time(tmp_path: Path, tiny_model: Path) -> None:
    world = World(tmp_path, tiny_model, QUICK.model_copy(update={"max_vote_wait_s": 1e-3}))
    cycle = world.learner()
    world.votes(2)
    cycle.once()
    assert world.registry.champion("policy") == 0
    cycle.once()
    assert world.registry.champion("policy") == 1
    world.store.close()


def test_a_tripwire_stops_the_policy_and_not_the_reward_model(world: World) -> None:
    cycle = world.learner()
    for version, text in ((0, "a full answer to question {n}"), (1, "")):  # the base, then a policy that learned to say nothing
        for n in range(30):
            made = world.interaction(version=version)
            asked = ({"role": "user", "content": f"question {n}"},)
            said = tuple(replace(c, text=text.format(n=n)) for c in made.candidates)
            world.store.write([replace(made, messages=asked, candidates=said)])
    world.votes(5)
    cycle.once()
    assert (world.registry.champion("reward"), world.registry.champion("policy")) == (1, 0)
    halted = halt.read(world.config.home)
    assert halted is not None
    assert any("empty answers" in reason for reason in halted.reasons)
    assert halt.resume(world.config.home) is not None
    cycle.once()
    assert world.registry.champion("policy") == 1  # what lies before the resume is not looked at again


def test_thin_traffic_is_topped_up_from_the_prompts_just_voted_on(tmp_path: Path, tiny_model: Path) -> None:
    world = World(tmp_path, tiny_model, QUICK.model_copy(update={"top_up_groups": 4}))
    asked: list[tuple[int, ...]] = []

    def top_up(prompts: Sequence[Interaction]) -> int:
        asked.extend(p.prompt_token_ids for p in prompts)
        world.store.write([world.interaction(prompt=p.prompt_token_ids) for p in prompts])
        return len(prompts)

    cycle = world.learner(top_up=top_up)
    made = [world.interaction(), world.interaction()]
    kinds = (Kind.RANKING, Kind.THUMB)
    world.store.write([*made, *(world.vote(i, kind=kind, value=1 if kind is Kind.THUMB else (3, 2, 1, 0)) for i in made for kind in kinds)])
    cycle.once()  # four votes are due, on two groups: two more are asked for
    assert asked == [made[1].prompt_token_ids, made[0].prompt_token_ids]
    assert world.registry.champion("policy") == 0
    cycle.once()
    assert world.registry.version("policy", 1).report["groups"] == 4
    assert len(asked) == 2
    world.store.close()


def test_votes_wait_where_there_is_nothing_to_learn_from_and_nobody_to_ask(tmp_path: Path, tiny_model: Path) -> None:
    world, calls = World(tmp_path, tiny_model, QUICK.model_copy(update={"top_up_groups": 4})), list[int]()

    def turned_away(prompts: Sequence[Interaction]) -> int:
        calls.append(len(prompts))
        return 0

    cycle = world.learner(top_up=turned_away)
    world.votes(5)
    cycle.once()
    assert world.registry.champion("policy") == 1  # with what there is
    late = [world.vote(i, kind=Kind.THUMB, value=1) for i in cycle.journal.judged.values()]
    world.store.write(late)
    for _ in range(4):
        cycle.once()
    assert world.registry.champion("policy") == 1
    assert len(calls) == 1  # and not again and again
    world.store.close()


def test_versions_can_be_made_again_from_store_and_seeds(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, tiny_model, dtype=fastest_dtype())
    cycle = world.learner()
    for round_ in range(4):
        for _ in range(2):
            world.votes(3, version=cycle.at.policy)
            if round_ == 3:
                vote_during_an_update(world, cycle, monkeypatch)
            cycle.once()
        if round_ == 1:
            world.registry.roll_back("policy", by="operator", reason="a matter of taste")
        if round_ == 2:
            cycle = world.learner()  # the learner was restarted
    made = world.registry.numbers("policy")
    assert len(made) >= 4
    replay = Replay(world.config, tmp_path / "again")
    outcomes = list(replay.until(made[-1]))
    assert [(o.version.kind, o.version.number) for o in outcomes if o.version.kind == "policy"] == [("policy", n) for n in made]
    assert [f"{o.version.kind} {o.version.number}" for o in outcomes if not o.same] == []
    assert [o.state for o in outcomes][-1] is world.registry.state("policy", made[-1])

    changed = world.vote(next(iter(cycle.journal.judged.values())), value=(0, 1, 2, 3))
    world.store.write([changed])  # the past is not what it was
    assert not all(o.same for o in Replay(world.config, tmp_path / "third").until(made[-1]))
    world.store.close()
