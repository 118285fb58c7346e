"""How a simulated user turns what it reads into a vote: which kind, what value, and the slip of the finger now and then. Pure.

The randomness is passed in, so that a seed repeats a user's behaviour exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from attune.simulate.judge import TIE_MARGIN
from attune.simulate.tastes import Answer, Ask, Taste
from attune.types import Kind

CONTENT = 0.5
"""A person puts the thumb up from this score on."""
KINDS: dict[str, float] = {"thumb": 0.3, "rating": 0.15, "comparison": 0.2, "ranking": 0.3, "edit": 0.05}
"""The kinds that a user can vote by, and how often each is chosen when all are allowed."""
ANSWERS_WANTED = {Kind.THUMB: 1, Kind.RATING: 1, Kind.EDIT: 1, Kind.COMPARISON: 2, Kind.RANKING: 4}
"""How many answers a user asks to see (`n`) to vote by this kind."""


@dataclass(frozen=True, slots=True)
class Vote:
    """A vote as the HTTP API wants it; `flipped` says that the user slipped and said the opposite."""

    kind: Kind
    value: Any
    choice: int = 0
    flipped: bool = False


def choose_kind(kinds: Sequence[str], random: Random) -> Kind:
    """Return one of the allowed kinds, by their usual shares."""
    return Kind(random.choices(list(kinds), weights=[KINDS[kind] for kind in kinds])[0])


def vote(kind: Kind, taste: Taste, ask: Ask, answers: Sequence[Answer], candidates: Sequence[int], noise: float, random: Random) -> Vote:
    """Return the user's vote on the answers shown; `candidates[i]` is the candidate index of `answers[i]`.

    With probability `noise` the vote is the opposite of what the user meant. A ranking of answers that are all alike becomes a tie.
    """
    scores = [taste.score(ask, answer) for answer in answers]
    if kind is Kind.EDIT:
        return _edit(taste, ask, answers[0], scores[0])
    meant = _meant(kind, scores, candidates, random)
    return _opposite(meant) if random.random() < noise else meant


def _meant(kind: Kind, scores: Sequence[float], candidates: Sequence[int], random: Random) -> Vote:
    if kind is Kind.THUMB:
        return Vote(kind, 1 if scores[0] >= CONTENT else -1)
    if kind is Kind.RATING:
        return Vote(kind, 1 + round(4 * scores[0]))
    order = list(range(len(scores)))
    random.shuffle(order)
    order.sort(key=lambda i: -scores[i])
    best, worst = order[0], order[-1]
    if len(order) < 2:
        return _meant(Kind.THUMB, scores, candidates, random)
    if scores[best] - scores[worst] < TIE_MARGIN:
        tie = "good" if scores[best] >= CONTENT else "bad"
        return Vote(Kind.COMPARISON, {"tie": tie, "between": [candidates[best], candidates[worst]]})
    if kind is Kind.COMPARISON:
        return Vote(kind, {"better": candidates[best], "worse": candidates[worst]})
    return Vote(Kind.RANKING, [candidates[i] for i in order])


def _opposite(meant: Vote) -> Vote:
    """Return the slip: thumb and stars mirrored, pair and ranking reversed; a good tie called bad and the reverse."""
    match meant.kind:
        case Kind.THUMB:
            value: Any = -meant.value
        case Kind.RATING:
            value = 6 - meant.value
        case Kind.RANKING:
            value = meant.value[::-1]
        case _ if "tie" in meant.value:
            value = meant.value | {"tie": "bad" if meant.value["tie"] == "good" else "good"}
        case _:
            value = {"better": meant.value["worse"], "worse": meant.value["better"]}
    return replace(meant, value=value, flipped=True)


def _edit(taste: Taste, ask: Ask, answer: Answer, score: float) -> Vote:
    """Return the answer as the user would have had it; one that needs no mending gets a thumb up instead."""
    mended = taste.mend(ask, answer)
    if taste.score(ask, Answer(mended)) <= score:
        return Vote(Kind.THUMB, 1 if score >= CONTENT else -1)
    return Vote(Kind.EDIT, mended)
