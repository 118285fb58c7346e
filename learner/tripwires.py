"""Whether the answers themselves show that learning has gone wrong: pure, from texts, whatever the rewards say.

The newest answers of learned policies are held against typical ones, of the base. A policy that has learned to say next to nothing, to go
on for ever, to refuse, to repeat itself or to say the same to everybody trips a wire, and its learner stops until somebody has looked.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from attune.style import monotonous, refuses

MIN_ANSWERS = 24
"""Fewer than this say nothing yet."""
LEAST_LENGTH, MOST_LENGTH = 0.1, 4.0
"""Mean words, as a multiple of the typical."""
MORE = 0.25
"""By how much a share may exceed the typical one."""
LEAST_DISTINCT = 0.35
"""Different answers per different question."""
_WORD = re.compile(r"\w+")


WIRES = ("length", "refusals", "repetition", "empty", "sameness")

Said = tuple[str, str]
"""A question and an answer to it."""


@dataclass(frozen=True, slots=True)
class Looks:
    """How answers look: mean words, and shares of all answers; `distinct` is per different question, 1 at most."""

    words: float
    refusing: float
    repeating: float
    empty: float
    distinct: float


def looks(said: Sequence[Said]) -> Looks:
    """Return how answers look; they must not be none."""
    texts, count = [text for _, text in said], len(said)
    return Looks(
        words=sum(len(_WORD.findall(text)) for text in texts) / count,
        refusing=sum(refuses(text) for text in texts) / count,
        repeating=sum(monotonous([word.lower() for word in _WORD.findall(text)]) for text in texts) / count,
        empty=sum(not text.strip() for text in texts) / count,
        distinct=min(1.0, len({text.strip() for text in texts}) / len({question for question, _ in said})),
    )


def tripped(newest: Sequence[Said], typical: Sequence[Said], armed: Collection[str] = WIRES) -> list[str]:
    """Return every one of the `armed` wires that the newest answers tripped, in words; none while there are too few of either to say.

    >>> tripped([(f"q{n}", "no") for n in range(40)], [(f"q{n}", f"a fine long answer number {n}") for n in range(40)])
    ['distinct answers fell to 2% (typical: 100%)']
    """
    if len(newest) < MIN_ANSWERS or len(typical) < MIN_ANSWERS:
        return []
    now, usual = looks(newest), looks(typical)
    reasons = []
    if "length" in armed and not LEAST_LENGTH * usual.words <= now.words <= MOST_LENGTH * usual.words:
        reasons.append(f"answers have {now.words:.1f} words on average (typical: {usual.words:.1f})")
    for wire, name, share, before in (
        ("refusals", "refusals", now.refusing, usual.refusing),
        ("repetition", "answers that repeat themselves", now.repeating, usual.repeating),
        ("empty", "empty answers", now.empty, usual.empty),
    ):
        if wire in armed and share > before + MORE:
            reasons.append(f"{name} rose to {share:.0%} (typical: {before:.0%})")
    if "sameness" in armed and now.distinct < LEAST_DISTINCT < usual.distinct:
        reasons.append(f"distinct answers fell to {now.distinct:.0%} (typical: {usual.distinct:.0%})")
    return reasons
