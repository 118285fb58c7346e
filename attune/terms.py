"""Reward terms: named, weighted wishes of the operator beside the learned utility. Pure but for loading an entry point.

A term gives every answer a value between 0 and 1, or, where it is learned from votes on an aspect, its utility's distance from the typical
one, in deviations; its weight is in anchor standard deviations of the learned utility. An answer that
says nothing has no value to any of them, so none can be pleased by silence. Serve ranks by them and PPO trains on them.
"""

import importlib
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

from attune.config import TermSection
from attune.errors import ConfigError

log = structlog.get_logger()

_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_SENTENCE = re.compile(r"[.!?]+(?:\s|$)")

Value = Callable[[str, str], float]
"""Question and answer -> how well the answer does, 0 to 1."""
Values = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Term:
    """One wish."""

    name: str
    weight: float
    value: Value | None
    """None: it is learned from votes on this aspect (`RewardModel.objectives`)."""


class Terms:
    """All configured wishes; the empty one changes nothing."""

    def __init__(self, terms: Sequence[Term] = ()) -> None:
        self.terms = tuple(terms)

    @classmethod
    def load(cls, sections: Sequence[TermSection]) -> "Terms":
        """Return the configured terms; raises `ConfigError` for an entry point that cannot be used."""
        return cls([Term(section.name, section.weight, _value(section)) for section in sections])

    def values(self, question: str, texts: Sequence[str], learned: Mapping[str, Values] | None = None) -> dict[str, Values]:
        """Return every term's value of every answer, held within 0 and 1; one without a word, or that a term cannot read, has 0.

        Those that votes teach have the value that was `learned`, in deviations of their own, and 0 before the first vote.
        """
        known = learned or {}
        return {
            term.name: np.array([_valued(term, question, text) if text.strip() else 0.0 for text in texts], np.float32)
            if term.value is not None
            else known.get(term.name, np.zeros(len(texts), np.float32))
            for term in self.terms
        }

    def bonus(self, values: Mapping[str, Values], weights: Mapping[str, float], count: int) -> Values:
        """Return what `count` answers gain, in anchor standard deviations; `weights` replaces configured weights by name."""
        gained = np.zeros(count, np.float32)
        for term in self.terms:
            gained += np.float32(weights.get(term.name, term.weight)) * values[term.name]
        return gained

    def unknown(self, names: Sequence[str]) -> list[str]:
        """Return those of the names that no term has."""
        return sorted(set(names) - {term.name for term in self.terms})


def brevity(words: int) -> Value:
    """Return a value of 1 up to so many words, falling to 0 at four times as many."""
    return lambda _, answer: (4 * words - len(_WORD.findall(answer))) / (3 * words)


def clarity(_: str, answer: str) -> float:
    """Return 1 for a text that a nine-year-old reads (grade 4), 0 for grade 16, by the automated readability index (Senter & Smith 1967).

    >>> clarity("", "The cat sat. It was fat.")
    1.0
    """
    words = _WORD.findall(answer)
    if not words:
        return 0.0
    grade = 4.71 * sum(map(len, words)) / len(words) + 0.5 * len(words) / max(1, len(_SENTENCE.findall(answer))) - 21.43
    return min(1.0, (16.0 - grade) / 12.0)


def mention(phrases: Sequence[str]) -> Value:
    """Return the share of the phrases that the answer contains, upper and lower case alike."""
    return lambda _, answer: sum(p.lower() in answer.lower() for p in phrases) / len(phrases)


def avoid(phrases: Sequence[str]) -> Value:
    """Return 1 where none of the phrases occurs, 0 where one does."""
    return lambda _, answer: float(not any(p.lower() in answer.lower() for p in phrases))


def matches(pattern: str) -> Value:
    """Return 1 where the pattern is found in the answer."""
    compiled = re.compile(pattern, re.DOTALL)
    return lambda _, answer: float(bool(compiled.search(answer)))


def _value(section: TermSection) -> Value | None:
    match section.kind:
        case "votes":
            return None
        case "brevity":
            return brevity(section.words)
        case "clarity":
            return clarity
        case "regex":
            return matches(section.pattern)
        case "mention":
            return mention(section.phrases)
        case "avoid":
            return avoid(section.phrases)
        case "python":
            return _entry_point(section)


def _entry_point(section: TermSection) -> Value:
    module, _, name = section.entry_point.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last: nothing that lies here may stand in for a library
    try:
        value: Value = getattr(importlib.import_module(module), name)
        tried = float(value("What is a river?", "Water that flows to the sea."))
    except Exception as error:  # whatever a stranger's code raises
        raise ConfigError(f"terms.{section.name}: {section.entry_point} cannot be used: {error}") from error
    if not math.isfinite(tried):
        raise ConfigError(f"terms.{section.name}: {section.entry_point} returned {tried}; it should return a number from 0 to 1")
    return value


def _valued(term: Term, question: str, answer: str) -> float:
    assert term.value is not None
    try:
        return _held(term.value(question, answer))
    except Exception as error:  # noqa: BLE001 (a stranger's code; one answer that it cannot read must not keep the others unjudged)
        log.warning("term_failed", term=term.name, error=f"{type(error).__name__}: {error}", valued_as=0.0)
        return 0.0


def _held(value: float) -> float:
    return min(1.0, max(0.0, float(value))) if math.isfinite(value) else 0.0
