"""Score before you learn: what is kept of a prediction, how figures come about, and what calibrates them."""

import math
from random import Random

import numpy as np
import pytest

from attune.reward import Scale
from attune.types import Demonstration, Kind, Preference, Rating
from learner import statistics
from learner.prequential import WINDOW, Prequential

PLAIN = Scale()


def thumb(level: int, ident: str = "f") -> Rating:
    return Rating(ident, "i", 0, level, 2, 1.0, Kind.THUMB, None)


def test_figures_per_kind_and_over_all() -> None:
    running = Prequential()
    running.add(Preference("f", "i", (0, 1, 2), False, 1.0, Kind.RANKING, None), [3.0, 1.0, 2.0], PLAIN)
    running.add(thumb(1), [0.5], PLAIN)
    running.add(thumb(0), [-0.5], PLAIN)
    running.add(Rating("s", "i", 0, 4, 5, 1.0, Kind.RATING, None), [1.0], PLAIN)
    running.add(Rating("s", "i", 0, 2, 5, 1.0, Kind.RATING, None), [0.0], PLAIN)
    running.add(Demonstration("e", "i", 0, "better", 1.0, None), [0.0], PLAIN, edited=2.0)
    running.add(Preference("t", "i", (0, 1), True, 1.0, Kind.COMPARISON, None), [3.0, 1.0], PLAIN)  # a tie says neither
    running.add(Preference("g", "i", (0, 1), True, 1.0, Kind.COMPARISON, None, good=True), [3.0, -1.0], PLAIN)  # ... but of what
    running.add(Preference("b", "i", (0, 1), True, 1.0, Kind.COMPARISON, None, good=False), [3.0, -1.0], PLAIN)
    found = running.figures()
    assert found["ranking_accuracy"] == pytest.approx(2 / 3, abs=1e-3)
    assert (found["thumb_accuracy"], found["thumb_auroc"]) == (1.0, 1.0)
    assert found["thumb_ece"] == pytest.approx(1 - PLAIN.probability(0.5), abs=1e-3)
    assert found["rating_accuracy"] == 1.0
    assert found["rating_ece"] == pytest.approx(1 - PLAIN.probability(PLAIN.star_margin(1.0)), abs=1e-3)
    assert found["edit_accuracy"] == 1.0
    assert "comparison_predicted" not in found
    assert (found["tie_accuracy"], found["tie_predicted"]) == (0.5, 2)
    assert found["overall_predicted"] == 10
    assert found["overall_accuracy"] == pytest.approx(7 / 9, abs=1e-3)


def test_who_foretells_nothing_is_neither_right_nor_wrong() -> None:
    running = Prequential()
    for level, utility in ((1, 0.0), (0, 0.0), (1, 0.5)):
        running.add(thumb(level), [utility], PLAIN)
    found = running.figures()
    assert (found["thumb_accuracy"], found["thumb_predicted"]) == (1.0, 3)


def test_the_bias_of_thumbs_and_the_temperature_are_in_the_probability() -> None:
    running = Prequential()
    running.add(thumb(1), [-1.0], Scale(temperature=2.0, thumb_bias=3.0))
    assert running.reliability() == [(pytest.approx(1 / (1 + math.exp(-1.0))), 1.0, 1)]


def test_stars_are_foretold_by_their_own_thresholds() -> None:
    scale = Scale(stars=(-3.0, 1.0))
    fours, twos = 1 / (1 + math.exp(1.0 - 0.5)), 1 / (1 + math.exp(0.5 + 3.0))
    assert scale.probability(scale.star_margin(0.5)) == pytest.approx(fours / (fours + twos))
    running = Prequential()
    running.add(Rating("s", "i", 0, 3, 5, 1.0, Kind.RATING, None), [0.5], scale)
    running.add(Rating("s", "i", 0, 2, 5, 1.0, Kind.RATING, None), [0.5], scale)  # three stars say neither
    assert running.reliability() == [(pytest.approx(fours / (fours + twos)), 1.0, 1)]


def test_pairs_are_turned_so_that_not_every_answer_is_yes() -> None:
    running, random = Prequential(), Random(0)
    for n in range(200):
        order = (0, 1) if random.random() < 0.5 else (1, 0)
        running.add(Preference(f"f{n}", "i", order, False, 1.0, Kind.COMPARISON, None), [0.0, 0.0], PLAIN)
    ((predicted, share, count),) = running.reliability()
    assert (predicted, count) == (0.5, 200)
    assert share == pytest.approx(0.5, abs=0.1)


def test_only_the_newest_count() -> None:
    running = Prequential()
    for _ in range(WINDOW):
        running.add(thumb(0), [1.0], PLAIN)
    for _ in range(WINDOW):
        running.add(thumb(1), [1.0], PLAIN)
    assert running.figures()["thumb_accuracy"] == 1.0
    assert running.figures()["thumb_predicted"] == WINDOW


def test_the_temperature_takes_back_what_is_claimed_too_boldly() -> None:
    rng = np.random.default_rng(0)
    margin = rng.normal(size=2000) * 2
    came = rng.random(2000) < 1 / (1 + np.exp(-margin))
    assert statistics.temperature(list(margin), list(came)) == pytest.approx(1.0, rel=0.15)
    assert statistics.temperature(list(3 * margin), list(came)) == pytest.approx(3.0, rel=0.15)
    assert statistics.temperature([9.0] * 10, [False] * 10) == 1.0  # too few to say


def test_statistics_against_brute_force() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 5, 60).astype(float), rng.random(60) < 0.4
    pairs = [(a, b) for a in x[y] for b in x[~y]]
    assert statistics.auroc(x, y) == pytest.approx(sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs))
    assert statistics.auroc(x, np.ones(60, bool)) is None
    ranks = np.array([sum(b < a for b in x) + (sum(b == a for b in x) + 1) / 2 for a in x])
    z = rng.normal(size=60) + x
    order = np.array([sum(b <= a for b in z) for a in z])
    assert statistics.spearman(x, z) == pytest.approx(np.corrcoef(ranks, order)[0, 1])
    assert statistics.pearson(np.ones(5), np.arange(5.0)) is None
    p, came = np.array([0.05, 0.05, 0.95, 0.95]), np.array([False, True, True, True])
    assert statistics.ece(p, came) == pytest.approx((2 * 0.45 + 2 * 0.05) / 4)
