"""How an answer looks, whatever it says: length, format, repetition. For telling a taste for style from a taste for substance. Pure."""

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

STYLES = ("length", "format")
NUM_LOOKS = 8
_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:sorry|unable|not able)|i (?:cannot|can't|can not|won't)|as an ai|i do not have the ability)\b", re.IGNORECASE
)
_SIGNS = ("!\uff01", "?\uff1f")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_MARKS = re.compile(r"^\s*(?:[-*+]|\d+[.)]|#{1,6})\s|\*\*|```|^\s*\|", re.MULTILINE)


def monotonous(said: Sequence[str]) -> bool:
    """Return whether a text, given as its words, goes round in circles: a word thrice in a row, or few distinct phrases of three.

    >>> monotonous("no no no".split()), monotonous("one two three".split())
    (True, False)
    """
    if any(a == b == c for a, b, c in zip(said, said[1:], said[2:], strict=False)):
        return True
    phrases = list(zip(said, said[1:], said[2:], strict=False))
    return len(phrases) >= 8 and len(set(phrases)) < 0.7 * len(phrases)


def refuses(text: str) -> bool:
    """Return whether a text apologises or refuses, by its words.

    >>> refuses("I'm sorry, I cannot help."), refuses("Paris.")
    (True, False)
    """
    return bool(_REFUSAL.search(text))


def sentences(text: str) -> list[str]:
    """Return the sentences of a text without surrounding blanks."""
    return [part.strip() for part in _SENTENCE_END.split(text.strip()) if part.strip()]


def style(texts: Sequence[str]) -> NDArray[np.float32]:
    """Return one row per text: log(1 + words), and log(1 + marks of lists, headings, bold type, tables and code).

    >>> style(["one two three"]).astype(float).round(2).tolist()
    [[1.39, 0.0]]
    """
    rows = [(np.log1p(len(text.split())), _marks(text)) for text in texts]
    return np.array(rows, np.float32).reshape(-1, len(STYLES))


def looks(texts: Sequence[str]) -> NDArray[np.float32]:
    """Return one row per text, of what tone and plainness show in, whatever it says; zeros for an empty text.

    Whether it ends with an exclamation mark or a question mark, log(1 + how many it has) of each, letters a word, log(1 + words of the
    longest sentence), log(1 + marks of lists, headings, bold type, tables and code), log(1 + words said again: after the same word as once
    before, or twice running).

    >>> looks(["How nice! Is it yours?", "Nice, nice!"]).astype(float).round(2).tolist()
    [[0.0, 1.0, 0.69, 0.69, 3.2, 1.39, 0.0, 0.0], [1.0, 0.0, 0.69, 0.0, 4.0, 1.1, 0.0, 0.69]]
    """
    return np.array([_looks(text) for text in texts], np.float32).reshape(-1, NUM_LOOKS)


@lru_cache(8192)
def _looks(text: str) -> tuple[float, ...]:
    said, last = [word.strip(".,;:!?'\"()*") for word in text.split()], text.rstrip()[-1:]
    if not said:
        return (0.0,) * NUM_LOOKS
    letters = sum(map(len, said)) / len(said)
    longest = max(len(part.split()) for part in sentences(text))
    ends = (float(last in signs) for signs in _SIGNS)
    counts = (float(np.log1p(sum(text.count(sign) for sign in signs))) for signs in _SIGNS)
    return *ends, *counts, letters, float(np.log1p(longest)), _marks(text), float(np.log1p(_said_again(said)))


def _said_again(said: Sequence[str]) -> int:
    """Return how many words follow the same word as once before, or themselves."""
    pairs = [(before.lower(), word.lower()) for before, word in pairwise(said)]
    return sum(before == word or (before, word) in pairs[:n] for n, (before, word) in enumerate(pairs))


def _marks(text: str) -> float:
    return float(np.log1p(len(_MARKS.findall(text))))
