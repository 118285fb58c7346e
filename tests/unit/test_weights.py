"""How much a vote counts: recency halves it, nobody drowns the others, and importance only moves weight about."""

import pytest

from learner.weights import FULL_VOTES, Cast, weigh

DAY = 24 * 3600.0
PLAIN = {"half_life_s": 90 * DAY, "max_importance": 1.0}


def test_votes_of_a_few_people_count_in_full() -> None:
    casts = [Cast(user, 0.0, 1.0) for user in ("anna", "ben", None) for _ in range(20)]
    assert weigh(casts, **PLAIN) == pytest.approx([1.0] * 60)
    assert weigh([], **PLAIN) == []


def test_an_old_vote_counts_half_at_its_half_life() -> None:
    assert weigh([Cast(None, 0.0, 1.0), Cast(None, 90 * DAY, 1.0)], **PLAIN) == pytest.approx([0.5, 1.0])


def test_many_votes_of_one_person_weigh_as_their_square_root() -> None:
    casts = [Cast("loud", 0.0, 1.0)] * 200 + [Cast("calm", 0.0, 1.0)] * 10
    weights = weigh(casts, **PLAIN)
    assert sum(weights[:200]) == pytest.approx((FULL_VOTES * 200) ** 0.5)
    assert weights[200:] == pytest.approx([1.0] * 10)


def test_votes_so_old_that_nothing_is_left_of_them_weigh_nothing() -> None:
    casts = [Cast("gone", 0.0, 1.0), Cast("here", 45 * DAY, 1.0)]
    assert weigh(casts, half_life_s=3600.0, max_importance=1.0) == pytest.approx([0.0, 1.0])


def test_nobody_drowns_a_crowd() -> None:
    casts = [Cast("loud", 0.0, 1.0)] * 2000 + [Cast(f"user-{n}", 0.0, 1.0) for n in range(300)]
    weights = weigh(casts, **PLAIN)
    assert sum(weights[:2000]) / sum(weights) < 0.03
    assert weights[2000:] == pytest.approx([1.0] * 300)


def test_importance_moves_weight_and_makes_none() -> None:
    casts = [Cast(None, 0.0, 0.01), Cast(None, 0.0, 1.0), Cast(None, 0.0, 1.0)]
    weights = weigh(casts, half_life_s=DAY, max_importance=4.0)
    assert weights[0] == pytest.approx(4 * weights[1])
    assert sum(weights) == pytest.approx(3.0)


def test_no_share_exceeds_the_limit_however_many_are_loud() -> None:
    """Three loud people among a hundred: held to three equal shares of what weighs in the end, not of what they shout."""
    casts = [Cast(f"loud-{n}", 0.0, 1.0) for n in range(3) for _ in range(300)] + [Cast(f"user-{n}", 0.0, 1.0) for n in range(100)]
    weights = weigh(casts, **PLAIN)
    for n in range(3):
        assert sum(weights[300 * n : 300 * (n + 1)]) / sum(weights) == pytest.approx(3.0 / 103)
    assert weights[900:] == pytest.approx([1.0] * 100)
