"""Hidden tastes of several parts, for longer texts: a story about somebody, and a product description.

Each part is a pure function from question and answer to 0 to 1, so that a judge can say which of them got better. What nobody wants
scores 0 and a cut-off answer half, as with every taste (`attune.simulate.tastes`). `Ask.facts` are what the text should tell, all of them.
"""

import re
from collections.abc import Callable, Mapping

from attune.simulate.tastes import Answer, Ask, Taste, complete, judged, nobody_wants, words
from attune.style import sentences

Part = Callable[[Ask, Answer], float]
Rubric = Mapping[str, tuple[float, Part]]
"""By name: how much a part counts (all together 1), and the part."""

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_ENDING = re.compile(r"(?:ers|er|ing|s)$")
_READER = re.compile(r"\b(?:you|your|yours|you're|you'll|yourself)\b", re.IGNORECASE)
_GOOD_FOR = re.compile(
    r"\b(?:perfect for|ideal for|great for|good for|made for|designed (?:for|to)|helps?|keeps?|so (?:that )?you|lets you|makes it easy|"
    r"whether you|easy to|whenever you|enjoy)\b",
    re.IGNORECASE,
)
_CALL = re.compile(
    r"\b(?:order|buy|get|try|take|bring|add|choose|pick|grab|make it yours|treat yourself|don't miss|shop|discover|upgrade|today)\b",
    re.IGNORECASE,
)


def names_her(ask: Ask, answer: Answer) -> float:
    """Return 1 if the text names whom it should be about."""
    return float(bool(re.search(rf"\b{re.escape(ask.facts[0])}\b", answer.text, re.IGNORECASE)))


def keeps_short(ask: Ask, answer: Answer) -> float:
    """Return 1 for 30 to 70 words, falling to 0 at 10 and at 110: a story needs a few sentences, and no more."""
    return _within(len(words(answer.text)), 10, 30, 70, 110)


def tells_plainly(ask: Ask, answer: Answer) -> float:
    """Return half for at least three sentences, half for none too long (16 words at most; nothing at 32)."""
    parts = sentences(answer.text)
    return 0.5 * min(1.0, len(parts) / 3) + 0.5 * _longest(parts, 16, 32)


def accuracy(ask: Ask, answer: Answer) -> float:
    """Return the share of the facts (material, size, use) that the text tells; 0 if it gives a number that nobody gave it."""
    if invents_number(ask, answer):
        return 0.0
    said = {_stem(word) for word in words(answer.text)}
    numbers = set(_NUMBER.findall(answer.text))
    told = [set(_NUMBER.findall(fact)) <= numbers if _NUMBER.search(fact) else _stem(words(fact)[-1]) in said for fact in ask.facts]
    return sum(told) / len(told)


def invents_number(ask: Ask, answer: Answer) -> bool:
    """Return whether the text gives a number that the question does not."""
    return not set(_NUMBER.findall(answer.text)) <= set(_NUMBER.findall(ask.text))


def clarity(ask: Ask, answer: Answer) -> float:
    """Return half for sentences of 16 words at most (nothing at 32), half for 15 to 60 words in all (nothing at 100)."""
    return 0.5 * _longest(sentences(answer.text), 16, 32) + 0.5 * _within(len(words(answer.text)), 0, 15, 60, 100)


def persuasion(ask: Ask, answer: Answer) -> float:
    """Return a third each for speaking to the reader, for saying what it is good for, and for a call at the end."""
    parts = sentences(answer.text)
    call = bool(parts) and bool(_CALL.search(parts[-1]))
    return (bool(_READER.search(answer.text)) + bool(_GOOD_FOR.search(answer.text)) + call) / 3


STORY: Rubric = {"names her": (0.4, names_her), "short": (0.4, keeps_short), "plain": (0.2, tells_plainly)}
PRODUCT: Rubric = {"accuracy": (0.4, accuracy), "clarity": (0.3, clarity), "persuasion": (0.3, persuasion)}


def _weighed(rubric: Rubric) -> Part:
    return lambda ask, answer: sum(weight * part(ask, answer) for weight, part in rubric.values())


def _within(count: int, too_few: int, least: int, most: int, too_many: int) -> float:
    return max(0.0, min(1.0, (count - too_few) / (least - too_few), (too_many - count) / (too_many - most)))


def _longest(parts: list[str], good: int, bad: int) -> float:
    longest = max((len(words(part)) for part in parts), default=bad)
    return min(1.0, max(0.0, (bad - longest) / (bad - good)))


def _stem(word: str) -> str:
    """Return a word without its usual endings: hiker, hikers and hiking are the same use."""
    stem = word
    while len(shorter := _ENDING.sub("", stem)) >= 3 and shorter != stem:
        stem = shorter
    return stem


def _whole_sentences(answer: Answer, most_words: int) -> list[str]:
    """Return the first sentences that came to their end, each once, up to so many words together."""
    kept: list[str] = []
    for part in dict.fromkeys(sentences(answer.text)):
        if not complete(Answer(part)):
            continue
        if len(words(" ".join([*kept, part]))) > most_words:
            break
        kept.append(part)
    return kept


def _story_told(ask: Ask, answer: Answer) -> str:
    """Return the story up to its last whole sentence within 50 words, with her name at the start and an end."""
    name = ask.facts[0]
    kept = _whole_sentences(answer, 50)
    named = names_her(ask, Answer(" ".join(kept)))
    told = " ".join([*([] if named else [f"This is what happened to {name}."]), *kept, "In the evening she went home and was glad."])
    plain = f"{name} set out early in the morning. She looked for it all day long and found it under a tree. She went home and was glad."
    return plain if len(kept) < 2 or nobody_wants(ask, Answer(told)) else told


def _product_told(ask: Ask, answer: Answer) -> str:
    """Return the first sentences that invent nothing, with the facts and a call behind them."""
    material, size, use = ask.facts
    kept = [part for part in _whole_sentences(answer, 24) if not invents_number(ask, Answer(part))]
    told = f"Made of {material}, {size}, it is just right for {use}. It helps you every day. Order yours today!"
    longer = " ".join([*kept, told])
    return told if nobody_wants(ask, Answer(longer)) else longer


RUBRICS = {
    taste.name: taste
    for taste in (
        Taste("named-story", "a short, finished story that names her", judged(_weighed(STORY)), _story_told),
        Taste("product", "the facts, in short sentences, with a reason to buy", judged(_weighed(PRODUCT)), _product_told),
    )
}
