"""What a vote teaches: one case per kind, and why some teach nothing."""

from dataclasses import replace
from typing import Any

import pytest

from attune.types import Demonstration, Feedback, Interaction, Kind, Preference, Rating, Signal
from feedback.preferences import MIN_EDIT_WEIGHT, derive, distance, objective, teaches, why_unusable
from tests.suites.events import interaction

ASKED = interaction("i1", candidates=4, shown=(2, 0))


def said(kind: Kind, value: Any, *, choice: int = 0, aspect: str | None = None) -> Feedback:
    return Feedback("fb", "e", "i1", kind, value, choice, 1.0, aspect, "u1")


def rating(candidate: int, level: int, levels: int, source: Kind) -> Rating:
    return Rating("fb", "i1", candidate, level, levels, 1.0, source, "u1")


def preference(*order: int, good: bool | None = None, source: Kind = Kind.COMPARISON) -> Preference:
    places = tuple({2: 0, 0: 1}.get(candidate, 2) for candidate in order)
    return Preference("fb", "i1", order, good is not None, 1.0, source, "u1", places, good)


@pytest.mark.parametrize(
    ("feedback", "signal"),
    [
        (said(Kind.THUMB, 1), rating(2, 1, 2, Kind.THUMB)),
        (said(Kind.THUMB, -1, choice=1), rating(0, 0, 2, Kind.THUMB)),
        (said(Kind.RATING, 1), rating(2, 0, 5, Kind.RATING)),
        (said(Kind.RATING, 5, choice=1), rating(0, 4, 5, Kind.RATING)),
        (said(Kind.COMPARISON, {"better": 3, "worse": 1}), preference(3, 1)),
        (said(Kind.COMPARISON, {"tie": "good", "between": [1, 3]}), preference(1, 3, good=True)),
        (said(Kind.COMPARISON, {"tie": "bad", "between": [1, 3]}), preference(1, 3, good=False)),
        (said(Kind.RANKING, [3, 0, 1]), preference(3, 0, 1, source=Kind.RANKING)),
        (said(Kind.RANKING, [3, 0], choice=9), preference(3, 0, source=Kind.RANKING)),  # it names its candidates: no choice is meant
        (said(Kind.EDIT, "wholly other words", choice=1), Demonstration("fb", "i1", 0, "wholly other words", 1.0, "u1")),
        (said(Kind.THUMB, 1, aspect="overall"), rating(2, 1, 2, Kind.THUMB)),
    ],
)
def test_a_vote_teaches_one_thing(feedback: Feedback, signal: Signal) -> None:
    assert derive(ASKED, feedback) == (signal,)
    assert why_unusable(ASKED, feedback) is None


@pytest.mark.parametrize(
    ("feedback", "reason"),
    [
        (said(Kind.THUMB, 1, choice=2), "choice 2 does not exist: the reply had 2"),
        (said(Kind.COMPARISON, {"better": 0, "worse": 4}), "candidate 4 does not exist: there were 4"),
        (said(Kind.RANKING, [3, 9, 1]), "candidate 9 does not exist: there were 4"),
        (said(Kind.EDIT, ASKED.candidates[2].text + "\n"), "the edited text is the answer itself"),
        (said(Kind.RATING, 4, aspect="tone"), "the aspect 'tone' is stored, but only overall votes are learned"),
    ],
)
def test_a_vote_that_does_not_fit_teaches_nothing_and_says_why(feedback: Feedback, reason: str) -> None:
    assert why_unusable(ASKED, feedback) == reason
    assert derive(ASKED, feedback) == ()


def test_votes_on_an_aspect_teach_where_something_learns_from_it() -> None:
    tone = said(Kind.THUMB, 1, aspect="tone")
    assert derive(ASKED, tone, ("tone",)) == (rating(2, 1, 2, Kind.THUMB),)
    assert (teaches(tone, ("tone",)), teaches(tone, ("other",)), teaches(tone)) == (True, False, False)
    assert derive(ASKED, said(Kind.EDIT, "wholly other words", aspect="tone"), ("tone",)) == ()
    assert (objective(tone), objective(said(Kind.THUMB, 1, aspect="overall"))) == ("tone", None)


@pytest.mark.parametrize(("kind", "value"), [(Kind.COMMENT, "hm"), (Kind.IMPLICIT, "copied"), (Kind.OUTCOME, 0.5)])
def test_kinds_that_nothing_learns_from_yet_say_so(kind: Kind, value: Any) -> None:
    assert derive(ASKED, said(kind, value)) == ()
    assert why_unusable(ASKED, said(kind, value)) == f"votes of the kind '{kind}' are stored, but nothing is learned from them yet"


def test_a_small_edit_weighs_less_than_a_large_one() -> None:
    def weight(text: str) -> float:
        [signal] = derive(_answered("one two three four five six seven eight nine ten"), said(Kind.EDIT, text))
        return signal.weight

    assert weight("one two three four five six seven eight nine TEN") == pytest.approx(0.1)
    assert weight("one two three four five FIVE six seven eight nine ten eleven") < weight("ten words that are none of those")
    assert weight("one  two three four five six seven eight nine ten .") == MIN_EDIT_WEIGHT


def _answered(text: str) -> Interaction:
    return replace(ASKED, candidates=tuple(replace(c, text=text) for c in ASKED.candidates))


def test_distance_is_a_share_of_the_words_however_long_the_texts() -> None:
    assert distance("a b c d", "a b c d") == 0.0
    assert distance("a b", "c d") == 1.0
    assert distance("a b c d", "a b c e") == pytest.approx(0.25)
    assert distance("x " * 50_000, "y " * 50_000) == 1.0
    assert distance("", "") == 0.0
