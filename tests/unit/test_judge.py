"""The judge of simulations: ties half, an interval that covers, and figures that an indifferent policy cannot fake."""

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attune.simulate.judge import compare, judge, wilson
from attune.simulate.prompts import held_out
from attune.simulate.tastes import TASTES, Answer

DIRECT = TASTES["correct-and-direct"]
ASKS = held_out("correct-and-direct")[:40]
RIGHT = {ask: [Answer(f"{ask.facts[0]}.")] for ask in ASKS}
WRONG = {ask: [Answer("I would not know that at all.")] for ask in ASKS}


def test_a_better_policy_wins_and_a_worse_one_loses_by_the_same() -> None:
    up, down = judge(DIRECT, RIGHT, WRONG), judge(DIRECT, WRONG, RIGHT)
    assert (up.preference, up.decided_preference, up.decided_share) == (1.0, 1.0, 1.0)
    assert (down.preference, down.decided_preference) == (0.0, 0.0)
    assert up.low == pytest.approx(1 - down.high)
    assert up.low > 0.9
    assert up.mean_score > up.base_mean_score


def test_the_same_answers_are_all_ties() -> None:
    verdict = judge(DIRECT, RIGHT, RIGHT)
    assert (verdict.preference, verdict.decided_share, verdict.decided_preference) == (0.5, 0.0, None)
    assert verdict.low < 0.5 < verdict.high


def test_ties_count_half_in_the_preference_and_not_among_the_decided() -> None:
    half = {ask: (RIGHT if i % 2 else WRONG)[ask] for i, ask in enumerate(ASKS)}
    verdict = judge(DIRECT, half, WRONG)
    assert verdict.preference == 0.75
    assert verdict.decided_preference == 1.0
    assert verdict.decided_share == 0.5


def test_a_policy_that_says_one_thing_to_all_is_seen() -> None:
    same = {ask: [Answer("Paris.")] for ask in ASKS}
    assert judge(DIRECT, same, WRONG).distinct_share == 1 / len(ASKS)
    assert judge(DIRECT, RIGHT, WRONG).distinct_share > 0.7


@pytest.mark.parametrize("text", ["", "{question}", "Paris Paris Paris Paris"])
@pytest.mark.parametrize("name", sorted(TASTES))
def test_degenerate_policies_lose_to_a_rambling_base_in_every_taste(name: str, text: str) -> None:
    asks = held_out(name)[:60]
    base = {ask: [Answer("There are so many sides to this matter that one hardly knows where to begin, and yet", False)] for ask in asks}
    verdict = judge(TASTES[name], {ask: [Answer(text.format(question=ask.text))] for ask in asks}, base)
    assert verdict.high < 0.1


def test_several_answers_per_prompt_do_not_narrow_the_interval() -> None:
    one = judge(DIRECT, RIGHT, WRONG)
    three = judge(DIRECT, {ask: answers * 3 for ask, answers in RIGHT.items()}, WRONG)
    assert (one.low, one.high) == (three.low, three.high)


def test_prompts_that_only_one_side_answered_are_left_out() -> None:
    verdict = judge(DIRECT, RIGHT, dict(list(WRONG.items())[:10]))
    assert verdict.prompts == 10
    assert judge(DIRECT, {}, {}).prompts == 0


@given(wins=st.integers(0, 200), more=st.integers(0, 200))
def test_wilson_holds_the_share_and_is_symmetric(wins: int, more: int) -> None:
    count = wins + more
    low, high = wilson(wins / count if count else 0.5, count)
    assert 0 <= low <= high <= 1
    if count:
        assert low - 1e-12 <= wins / count <= high + 1e-12
        mirrored = wilson(more / count, count)
        assert math.isclose(low, 1 - mirrored[1], abs_tol=1e-12)


def test_wilson_covers_the_truth_about_as_often_as_it_says() -> None:
    random, covered = Random(5), 0
    for _ in range(1000):
        wins = sum(random.random() < 0.7 for _ in range(60))
        low, high = wilson(wins / 60, 60)
        covered += low <= 0.7 <= high
    assert 0.92 <= covered / 1000 <= 0.98


def test_scores_within_the_margin_tie() -> None:
    assert (compare(0.5, 0.51), compare(0.6, 0.5), compare(0.4, 0.5)) == (0.5, 1.0, 0.0)
