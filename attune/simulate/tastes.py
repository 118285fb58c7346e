"""Hidden tastes: pure functions from an answer to a score in [0, 1], and how a person of that taste would mend an answer.

Every taste first rules out what nobody wants (nothing said, the question handed back, the same thing again and again): that scores 0,
below anything a person could use, so that a policy cannot please by shrinking or parroting. An answer cut off loses half its score.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from attune.style import monotonous, sentences

_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
_EMPTY_WORDS = frozenset(
    _WORD.findall(
        "a an and are as asked at be by do does for from how i in is it its me my of on or please question so that the"
        " this to was we were what when where which who why will with you your"
    )
)
_ENDINGS = (".", "!", "?", "…", '"', "”", "'", ")", ":)", ":-)")


@dataclass(frozen=True, slots=True)
class Ask:
    """A question as a simulated person puts it; `facts` are the right answers where there is one, any of them will do.

    Where a text is ordered, they are what it should tell, all of them (`attune.simulate.rubrics`).
    """

    text: str
    facts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply as the person reads it; `finished` is False where it was cut off at the token limit."""

    text: str
    finished: bool = True


@dataclass(frozen=True, slots=True)
class Taste:
    """What a person likes (`score`, hidden from the server) and what they would have written instead (`mend`)."""

    name: str
    about: str
    score: Callable[[Ask, Answer], float]
    mend: Callable[[Ask, Answer], str]


def words(text: str) -> list[str]:
    """Return the words of a text, lower case, without punctuation."""
    return _WORD.findall(text.lower())


def says_nothing(text: str) -> bool:
    """Return whether no word of the text means anything by itself."""
    return all(word in _EMPTY_WORDS for word in words(text))


def echoes(question: str, text: str) -> bool:
    """Return whether the text only hands the question back: verbatim with trimmings, or in its own words with nothing added."""
    asked, said = words(question), words(text)
    rest = _without(said, asked)
    if rest is not None:
        return all(word in _EMPTY_WORDS for word in rest)
    content = {word for word in said if word not in _EMPTY_WORDS}
    theme = {word for word in asked if word not in _EMPTY_WORDS}
    added = content - theme
    return bool(theme) and 2 * len(content & theme) >= len(theme) and (not added or (len(said) >= 5 and 5 * len(added) < len(content)))


def repeats_itself(text: str) -> bool:
    """Return whether the text says the same thing again: a sentence twice, a word thrice in a row, or few distinct phrases."""
    if monotonous(words(text)):
        return True
    whole = [tuple(words(part)) for part in sentences(text)]
    whole = [part for part in whole if part]
    if len(set(whole)) < len(whole):
        return True
    return bool(re.search(r"([^\w\s])\1{3,}", text))


def nobody_wants(ask: Ask, answer: Answer) -> bool:
    """Return whether no person of any taste could use this answer."""
    if says_nothing(answer.text) or repeats_itself(answer.text):
        return True
    return not _tells_fact(ask, answer.text) and echoes(ask.text, answer.text)


def complete(answer: Answer) -> bool:
    """Return whether the answer came to its end, and not by a stop in mid-sentence (up to three words need no full stop)."""
    return answer.finished and (answer.text.rstrip().endswith(_ENDINGS) or len(words(answer.text)) <= 3)


def _tells_fact(ask: Ask, text: str) -> bool:
    said, asked = words(text), words(ask.text)
    return any(_place(said, words(fact)) is not None and _place(asked, words(fact)) is None for fact in ask.facts)


def _without(said: list[str], asked: list[str]) -> list[str] | None:
    """Return the words left when the question, verbatim, is taken out; None if it is not in there."""
    for start in range(len(said) - len(asked) + 1):
        if asked and said[start : start + len(asked)] == asked:
            return said[:start] + said[start + len(asked) :]
    return None


def judged(like: Callable[[Ask, Answer], float]) -> Callable[[Ask, Answer], float]:
    """Return a score that is 0 for what nobody wants, 0.1 to 1 else, and half of that for an answer without its end."""

    def score(ask: Ask, answer: Answer) -> float:
        if nobody_wants(ask, answer):
            return 0.0
        worth = 0.1 + 0.9 * min(1.0, max(0.0, like(ask, answer)))
        return worth if complete(answer) else worth / 2

    return score


def _brevity(ask: Ask, answer: Answer) -> float:
    """3 to 12 words are best; a lone word is curt; from there on every word costs, down to nothing at 45."""
    count = len(words(answer.text))
    if not complete(answer):
        return 0.0
    return 0.6 if count < 3 else min(1.0, (45 - count) / 33)


def _directness(ask: Ask, answer: Answer) -> float:
    """The right answer within the first dozen words, then brevity; a wrong answer is worth nothing however short."""
    said = words(answer.text)
    place = min((p for p in (_place(said, words(fact)) for fact in ask.facts) if p is not None), default=None)
    if place is None:
        return 0.0
    early = 1.0 if place < 12 else 0.3
    brief = min(1.0, max(0.0, (40 - len(said)) / 25))
    return early * (0.5 + 0.5 * brief)


def _place(said: list[str], fact: list[str]) -> int | None:
    """Return where a fact begins in what was said, "China's" saying China, too; None if it was not said."""
    said = [word.removesuffix("'s").removesuffix("\u2019s") for word in said]
    for start in range(len(said) - len(fact) + 1):
        if said[start : start + len(fact)] == fact:
            return start
    return None


_WARM = re.compile(
    r"\b(glad|happy|love|lovely|wonderful|great|enjoy|welcome|thanks?|thank you|congratulations|fun|delighted|hope|amazing|fantastic|"
    r"awesome|excited|best of luck|good luck|feel free|take care|cheers|nice)\b",
    re.IGNORECASE,
)
_OFFER = re.compile(
    r"\b(let me know|feel free|here to help|happy to help|can i help|help you|would you like|do you|are you|have a)\b", re.IGNORECASE
)


def _warmth(ask: Ask, answer: Answer) -> float:
    """Half for how it ends (an exclamation, a question back, an offer), the rest for warm words and a lively tone."""
    parts = sentences(answer.text)
    last = parts[-1] if parts else ""
    ends = complete(answer) and (last.endswith(("!", "?", ":)", ":-)")) or bool(_OFFER.search(last)))
    kind = len({found.group().lower() for found in _WARM.finditer(answer.text)})
    return 0.5 * ends + 0.15 * min(2, kind) + 0.2 * ("!" in answer.text)


def _plainness(ask: Ask, answer: Answer) -> float:
    """Half for short words (4 letters on average are best, 5.6 worth nothing), half for short sentences (10 words; 24 worth nothing).

    Fewer than six words explain nothing, and are worth less in proportion: "Mmm!" is plain, and no answer.
    """
    said = words(answer.text)
    letters = sum(map(len, said)) / len(said)
    longest = max(len(words(part)) for part in sentences(answer.text))
    plain = 0.5 * min(1.0, max(0.0, (5.6 - letters) / 1.6)) + 0.5 * min(1.0, max(0.0, (24 - longest) / 14))
    return min(1.0, len(said) / 6) * plain


def _sense(ask: Ask, answer: Answer) -> float:
    """Half for being worth something at all, the rest for taking up the words that the question turns on."""
    theme = {word for word in words(ask.text) if word not in _EMPTY_WORDS}
    return 0.5 + 0.5 * len(theme & set(words(answer.text))) / max(1, len(theme))


def _first_sentence(ask: Ask, answer: Answer) -> str:
    parts = sentences(answer.text)
    first = parts[0] if parts else "I do not know."
    return first if first.endswith(_ENDINGS) else " ".join(first.split()[:12]).rstrip(",;:-") + "."


def _the_fact(ask: Ask, answer: Answer) -> str:
    return f"{ask.facts[0]}." if ask.facts else _first_sentence(ask, answer)


def _with_warm_end(ask: Ask, answer: Answer) -> str:
    return f"{_first_sentence(ask, answer)} I hope that helps, and let me know how it goes!"


TASTES = {
    taste.name: taste
    for taste in (
        Taste("short", "a finished answer in few words", judged(_brevity), _first_sentence),
        Taste("correct-and-direct", "the right answer at once, and little else", judged(_directness), _the_fact),
        Taste("facts", "the same, about capitals and small sums", judged(_directness), _the_fact),
        Taste("friendly", "warm words, and a warm end", judged(_warmth), _with_warm_end),
        Taste("plain", "short words in short sentences", judged(_plainness), _first_sentence),
    )
}

SENSE = Taste("sense", "a finished answer that is about the question", judged(_sense), _first_sentence)
"""What anybody wants of an answer to anything: for judging on tasks that nobody voted on."""
