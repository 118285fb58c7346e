"""A taste that shows in few answers and in one group of features is found soon: what one prior over all features would dilute."""

import numpy as np
import pytest
from numpy.typing import NDArray

from attune.frozen import NUM_SCALARS
from attune.style import looks
from attune.types import Kind, Preference, Rating, Signal
from learner import reward_trainer
from learner.likelihoods import Index
from learner.reward_trainer import PROBES, Judged, Typical, fit

HIDDEN = 64
GROUPS = {name: slice(k * HIDDEN, (k + 1) * HIDDEN) for k, name in enumerate(("words", "meaning", "ending"))}
RARE = 0.2
FLIPPED = 0.1
SEEDS = range(4)
ALONE = {"all": PROBES["all"]}

Array = NDArray[np.float32]


def answers(group: str, count: int, seed: int) -> tuple[Array, NDArray[np.bool_]]:
    """Return features of answers, one in five of which has what people like, and which these are: it shows in one group alone."""
    rng = np.random.default_rng(seed)
    direction = np.zeros(3 * HIDDEN + NUM_SCALARS)
    direction[GROUPS[group]] = np.random.default_rng(77).normal(size=HIDDEN)
    liked = rng.random(count) < RARE
    features = rng.normal(size=(count, len(direction))) + 3.0 * liked[:, None] * direction / np.linalg.norm(direction)
    return np.concatenate([looks(["text"] * count), features.astype(np.float32)], 1), liked


def decided(name: str, first: bool, second: bool, flip: bool) -> Signal | None:
    """Return a comparison by somebody who says nothing where there is nothing to choose."""
    order = (0, 1) if first != flip else (1, 0)
    return None if first == second else Preference(name, name, order, False, 1.0, Kind.COMPARISON, None)


def thumb(name: str, first: bool, second: bool, flip: bool) -> Signal | None:
    """Return a thumb on the first of two answers."""
    return Rating(name, name, 0, int(first != flip), 2, 1.0, Kind.THUMB, "anna")


def tie_or_not(name: str, first: bool, second: bool, flip: bool) -> Signal | None:
    """Return a comparison by somebody who calls it a tie where there is nothing to choose, as with two of three pairs."""
    tie = Preference(name, name, (0, 1), True, 1.0, Kind.COMPARISON, None)
    return tie if first == second else decided(name, first, second, flip)


VOTERS = {"decided": decided, "thumb": thumb, "tie": tie_or_not}


def accuracy(group: str, voter: str, votes: int) -> float:
    """Return how often a liked answer is scored above another one, over new answers, by models that learned so many votes."""
    right = []
    for seed in SEEDS:
        features, liked = answers(group, 16 * votes, seed)
        rng, rows, signals = np.random.default_rng(seed), Index(), list[Signal]()
        while len(signals) < votes:
            first = 2 * (len(rows) // 2)
            name = f"i{first}"
            rows |= {(name, 0): first, (name, 1): first + 1}
            signal = VOTERS[voter](name, bool(liked[first]), bool(liked[first + 1]), bool(rng.random() < FLIPPED))
            signals += [signal] if signal else []
        typical = Typical(answers(group, 256, 500 + seed)[0], ["text"] * 256)
        model, _ = fit(Judged(features[: len(rows)], rows, {}, signals), typical, 0.5, seed)
        new, wanted = answers(group, 1000, 1000 + seed)
        utility = model.judge(new)[0]
        right.append(float((utility[wanted][:, None] > utility[~wanted]).mean()))
    return float(np.mean(right))


@pytest.mark.parametrize("voter", VOTERS)
@pytest.mark.parametrize("group", GROUPS)
def test_a_rare_taste_in_one_group_is_found_by_probes_and_diluted_by_one_prior(
    group: str, voter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    votes = 100 if voter == "tie" else 60
    mixed = accuracy(group, voter, votes)
    monkeypatch.setattr(reward_trainer, "PROBES", ALONE)
    diluted = accuracy(group, voter, votes)
    assert mixed > 0.8
    assert mixed > diluted + 0.1
