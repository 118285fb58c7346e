"""One more vote is followed by the mean of the reward model alone: what that must keep, and when a fit is whole again."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from attune.reward import RewardModel
from attune.types import Version
from learner import reward_trainer
from learner.likelihoods import nll
from learner.reward_trainer import FEW_VOTES, MANY, OTHER_PROBES_EVERY, PROBES, Judged, Spread, Typical, fit, mattered, plan
from tests.unit.test_reward import SIZE, WIDTH, typical, votes, world


def published(report: dict[str, float]) -> Version:
    return Version("reward", 0, {}, 0, "m", "", 0.0, 80, 0, report)


@pytest.mark.parametrize("count", [40, 110])
def test_one_more_vote_is_followed_by_the_mean_alone(count: int) -> None:
    features, truth, rows = world()
    said = votes("ranking", truth, count + 1)
    before, report = fit(Judged(features, rows, {}, said[:-1]), typical(features), 0.5, 0)
    version = published(report)
    probes, spread = plan(version, before, FEW_VOTES + 1, 81)
    assert set(probes) == set(mattered(report))
    assert spread is not None
    assert sum(spread.share.values()) == pytest.approx(1.0)
    judged = Judged(features, rows, {}, said)
    (quick, about), (whole, _) = fit(judged, typical(features), 0.5, 0, spread=spread), fit(judged, typical(features), 0.5, 0)
    utility, settled, old = (model.judge(features)[0] for model in (quick, whole, before))
    assert np.abs(utility - settled).max() < 0.2 * np.abs(settled).max()
    assert np.abs(utility - settled).mean() < np.abs(old - settled).mean()  # nearer to what all votes say than what was known before
    assert quick.judge(features)[1] == pytest.approx(before.judge(features)[1], rel=1e-3)
    assert mattered(about) == mattered(report)


def test_a_spread_is_kept_only_between_turns_and_of_the_version_that_it_belongs_to() -> None:
    features, truth, rows = world()
    model, report = fit(Judged(features, rows, {}, votes("ranking", truth, 40)), typical(features), 0.5, 0)
    version, whole_turn = published(report), OTHER_PROBES_EVERY * MANY
    assert plan(None, model, FEW_VOTES + 1, 80) == (PROBES, None)
    assert plan(version, model, FEW_VOTES, 81)[1] is None
    assert plan(version, model, FEW_VOTES + 1, 80 + whole_turn)[1] is None
    assert plan(version, replace(model, version=7), FEW_VOTES + 1, 81)[1] is None
    assert plan(replace(version, report={}), model, FEW_VOTES + 1, 81) == (PROBES, None)


def followed(kind: str, trunk: bool, count: int = 40) -> tuple[RewardModel, RewardModel, Judged, Typical, Spread]:
    """Return a fit on some votes, one that follows one more, and what the latter was made of."""
    features, truth, rows = world()
    features, truth = features[: SIZE * (count + 1)], truth[: SIZE * (count + 1)]
    if trunk:  # its number stands behind the others, and knows the taste already
        features = np.concatenate([features, truth[:, None].astype(np.float32)], 1)
    said, about = votes(kind, truth, count + 1), typical(features)
    before, report = fit(Judged(features, rows, {}, said[:-1]), about, 0.5, 0, trunk=trunk)
    spread = plan(published(report), before, FEW_VOTES + 1, 81)[1]
    assert spread is not None
    judged = Judged(features, rows, {}, said)
    return before, fit(judged, about, 0.5, 0, trunk=trunk, spread=spread)[0], judged, about, spread


def test_a_vote_is_followed_from_where_the_trunk_stands() -> None:
    before, quick, judged, about, _ = followed("ranking", trunk=True)
    assert (quick.mean_D[-1], set(quick.particles_KD[:, -1])) == (1.0, {1.0})
    assert quick.judge(judged.features_MD)[1] == pytest.approx(before.judge(judged.features_MD)[1], rel=1e-3)
    whole = fit(judged, about, 0.5, 0, trunk=True)[0]
    utility, settled = (model.judge(judged.features_MD)[0] for model in (quick, whole))
    assert np.abs(utility - settled).max() < 0.1 * np.abs(settled).max()


@pytest.mark.parametrize("count", [20, 60])
def test_following_begins_where_the_last_fit_ended(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, judged, about, spread = followed("ranking", trunk=False, count=count)
    assert (len(judged.features_MD) < WIDTH) is (count == 20)  # coordinates count answers, or features
    monkeypatch.setattr(reward_trainer, "TOLERANCE_NATS", 1e-4)
    steps = list[int]()

    def counted(*given: Any, **named: Any) -> torch.Tensor:
        steps[-1] += 1
        return nll(*given, **named)

    monkeypatch.setattr(reward_trainer, "nll", counted)
    said = []
    for mean_D in (spread.mean_D, np.zeros_like(spread.mean_D)):
        steps.append(0)
        said.append(fit(judged, about, 0.5, 0, spread=replace(spread, mean_D=mean_D))[0].judge(judged.features_MD)[0])
    near, far = said
    assert steps[0] < 0.8 * steps[1], steps
    assert near == pytest.approx(far, abs=0.02 * float(np.abs(far).max()))


def test_what_thumbs_say_is_followed_too() -> None:
    _, quick, judged, about, _ = followed("thumb", trunk=False)
    whole = fit(judged, about, 0.5, 0)[0]
    assert abs(whole.scale.thumb_bias) > 0.01
    assert quick.scale.thumb_bias == pytest.approx(whole.scale.thumb_bias, abs=0.5 * abs(whole.scale.thumb_bias))


def test_the_spread_of_a_model_without_the_trunk_does_not_fit_one_that_has_it() -> None:
    *_, spread = followed("ranking", trunk=False)
    _, _, judged, about, _ = followed("ranking", trunk=True)
    told, untold = (fit(judged, about, 0.5, 0, trunk=True, spread=known)[0] for known in (spread, None))
    assert np.array_equal(told.particles_KD, untold.particles_KD)
