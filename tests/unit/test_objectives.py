"""An aspect that people vote on has a utility of its own, which ranks and pays by the weight that operator or request give it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from attune.config import Config, TermSection
from attune.errors import AdapterError, RegistryError
from attune.frozen import fastest_dtype
from attune.reward import RewardModel
from attune.terms import Terms
from attune.types import Feedback, Interaction, Kind, Withdrawal
from learner.replay import Replay
from learner.rollout import make_rollout
from serve.scorer import Scorer, Wish
from tests.fixtures.world import QUICK, World

BRIEF = TermSection(name="brief", kind="votes", weight=0.5)


def on(aspect: str, vote: Feedback) -> Feedback:
    return replace(vote, id=f"{vote.id}-{aspect}", event_id=f"{vote.event_id}-{aspect}", aspect=aspect)


def voted(world: World, number: int, *, whole: bool = True, version: int = 0) -> list[Interaction]:
    """Have people vote: by and large they like long answers, and know that those are not brief."""
    asked = [world.interaction(version=version) for _ in range(number)]
    aspects = [on("brief", world.vote(i, (0, 1, 2, 3))) for i in asked]
    world.store.write([*asked, *aspects, *([world.vote(i) for i in asked] if whole else [])])
    return asked


@pytest.fixture
def world(tmp_path: Path, tiny_model: Path) -> World:
    made = World(tmp_path, tiny_model, QUICK, fastest_dtype())
    made.config = made.config.model_copy(update={"terms": [BRIEF]})
    return made


def said(model: RewardModel, interaction: Interaction) -> tuple[np.ndarray, np.ndarray]:
    """Return the utility of an interaction's answers, and how brief they are said to be."""
    features, texts = [c.features or b"" for c in interaction.candidates], [c.text for c in interaction.candidates]
    return model.utility(features, texts)[0], model.wished(features, texts, 0.5)["brief"]


def test_votes_on_an_aspect_teach_a_utility_beside_that_of_the_whole(world: World) -> None:
    cycle = world.learner()
    voted(world, 12)
    cycle.once()
    model, fresh = RewardModel.load(world.registry.folder("reward", 1)), world.interaction()
    whole, brief = said(model, fresh)
    assert np.argsort(whole).tolist() == [0, 1, 2, 3]
    assert np.argsort(brief).tolist() == [3, 2, 1, 0]
    assert abs(brief).max() <= 3.0
    figures = world.registry.version("reward", 1).report
    assert (figures["signals"], figures["objective_brief_votes"]) == (12, 12)
    plain, heavy = (make_rollout(fresh, model, 0.5, terms) for terms in (cycle.terms, weighted(9.0)))
    assert np.argsort(plain.rewards).tolist() == [0, 1, 2, 3]
    assert np.argsort(heavy.rewards).tolist() == [3, 2, 1, 0]
    assert plain.terms["brief"] == pytest.approx(brief.tolist())
    world.store.close()


def weighted(weight: float) -> Terms:
    return Terms.load([BRIEF.model_copy(update={"weight": weight})])


def test_an_aspect_is_fitted_anew_only_when_people_vote_on_it(world: World) -> None:
    cycle, models = world.learner(), list[RewardModel]()
    asked = voted(world, 6)
    for step in range(4):
        cycle.once()
        models.append(RewardModel.load(world.registry.folder("reward", cycle.reward.version)).objectives.get("brief") or cycle.reward)
        assert cycle.reward.version == step + 1
        if step == 0:
            world.votes(1)
        if step == 1:
            voted(world, 1)
            cycle = world.learner()  # a restart makes no difference
        if step == 2:
            world.store.write(
                [Withdrawal(f"w-{v.id}", v.id, i.id, 1e6) for i in cycle.journal.judged.values() for v in [on("brief", world.vote(i))]]
            )
    first, kept, again, _ = (model.mean_D for model in models)
    assert np.array_equal(first, kept)
    assert not np.array_equal(kept, again)
    assert cycle.reward.objectives == {}
    assert len(cycle.journal.votes) == len(asked) + 2
    world.store.close()


def test_people_may_vote_on_an_aspect_alone(world: World) -> None:
    cycle = world.learner()
    (asked, *_) = voted(world, 8, whole=False)
    cycle.once()
    whole, brief = said(cycle.reward, asked)
    assert whole.tolist() == [0.0] * 4
    assert np.argsort(brief).tolist() == [3, 2, 1, 0]
    assert world.registry.champion("policy") == 1  # which is paid for it
    world.store.close()


def test_aspects_that_nobody_asked_to_learn_teach_nothing(world: World) -> None:
    cycle = world.learner()
    asked = world.interaction()
    world.store.write([asked, on("tone", world.vote(asked)), on("brief", world.vote(asked, "other words", Kind.EDIT))])
    assert cycle.once() is False
    assert len(cycle.journal.votes) == 0
    world.store.close()


async def test_serve_ranks_by_an_aspect_as_much_as_a_request_wants(world: World) -> None:
    cycle = world.learner()
    voted(world, 12)
    cycle.once()
    model = RewardModel.load(world.registry.folder("reward", 1))
    scorer, asked = Scorer(world.base, 0.5, cycle.terms), world.interaction()
    before = await scorer.score(asked.prompt_token_ids, asked.candidates, 0.7, Wish("x", {}))
    assert [c.scores["term.brief"] for c in before.candidates] == [0.0] * 4  # nothing was learned yet
    scorer.adopt(model)
    best = {}
    for weight in (0.0, 9.0):
        scored = await scorer.score(asked.prompt_token_ids, asked.candidates, 0.7, Wish("x", {"brief": weight}))
        best[weight] = max(scored.candidates, key=lambda c: c.scores["total"]).index
        assert {c.scores["weight.brief"] for c in scored.candidates} == {weight}
    assert best == {0.0: 3, 9.0: 0}
    assert [c.scores["term.brief"] for c in scored.candidates] == pytest.approx(said(model, asked)[1].tolist(), abs=0.01)
    narrow = replace(model, objectives={"brief": RewardModel.prior(3)})
    with pytest.raises(AdapterError, match="another number of features"):
        scorer.adopt(narrow)
    world.store.close()


def test_an_aspect_that_is_not_finite_is_no_reward_model(world: World) -> None:
    broken = replace(RewardModel.prior(4), objectives={"brief": replace(RewardModel.prior(4), mean_D=np.full(11, np.nan, np.float32))})
    folder = world.config.home / "000001"
    folder.mkdir()
    for name, data in broken.to_files().items():
        (folder / name).write_bytes(data)
    with pytest.raises(RegistryError, match="objective brief"):
        RewardModel.load(folder)
    world.store.close()


def test_a_past_with_an_aspect_can_be_made_again(world: World, tmp_path: Path) -> None:
    cycle = world.learner()
    for whole in (True, True, False):
        voted(world, 3, whole=whole, version=cycle.at.policy)
        world.votes(2, version=cycle.at.policy)
        cycle.once()
    made = world.registry.numbers("policy")[-1]
    outcomes = list(Replay(world.config, tmp_path / "again").until(made))
    assert [f"{o.version.kind} {o.version.number}" for o in outcomes if not o.same] == []
    world.store.close()


def test_the_whole_is_no_aspect() -> None:
    with pytest.raises(ValueError, match="cannot be named overall"):
        Config(terms=[TermSection(name="overall", kind="votes")])
    assert Config(terms=[BRIEF, TermSection(name="clear", kind="clarity")]).objectives == ("brief",)
