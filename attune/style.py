"""How an answer looks, whatever it says: length, format, repetition. For telling a taste for style from a taste for substance. Pure."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

STYLES = ("length", "format")
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


def style(texts: Sequence[str]) -> NDArray[np.float32]:
    """Return one row per text: log(1 + words), and log(1 + marks of lists, headings, bold type, tables and code).

    >>> style(["one two three"]).round(2).tolist()
    [[1.39, 0.0]]
    """
    rows = [(np.log1p(len(text.split())), np.log1p(len(_MARKS.findall(text)))) for text in texts]
    return np.array(rows, np.float32).reshape(-1, len(STYLES))
