"""Whether one set of answers is preferred to another by a hidden taste, on prompts that nobody voted on. Pure.

Ties count half; the interval is Wilson's, at 95%, with one observation per prompt however many answers were drawn for it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from attune.simulate.tastes import Answer, Ask, Taste, complete, repeats_itself, words
from attune.style import refuses

TIE_MARGIN = 0.02
"""Scores nearer than this are a tie."""
_Z95 = 1.959964


@dataclass(frozen=True, slots=True)
class Verdict:
    """How often a set of answers beats the base's: `preference` with ties half, `decided_preference` without the ties."""

    prompts: int
    preference: float
    low: float
    high: float
    decided_preference: float | None
    decided_share: float
    mean_score: float
    base_mean_score: float
    mean_words: float
    distinct_share: float
    """Different answers over all answers, one per prompt: falls towards 0 when a policy says the same to everybody."""
    finished_share: float
    """Answers that came to their end, over all answers."""
    repeating_share: float
    """Answers that say the same thing again, over all answers."""
    refusing_share: float
    """Answers that apologise or refuse, over all answers: what the learner's tripwire counts."""
    base_distinct_share: float
    base_finished_share: float
    base_repeating_share: float
    base_refusing_share: float
    base_flawless_share: float
    """The base's answers that no answer could beat, over all of them, one weight per prompt: even a perfect policy only ties with those."""

    def as_json(self) -> dict[str, Any]:
        """Return the fields, rounded for reading."""
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


def compare(score: float, base: float) -> float:
    """Return 1 for better than the base, 0 for worse, one half for a tie."""
    return 0.5 if abs(score - base) < TIE_MARGIN else float(score > base)


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return Wilson's 95% interval of a share seen over `count` observations; (0, 1) for none (Wilson 1927)."""
    if count == 0:
        return 0.0, 1.0
    z2 = _Z95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def judge(taste: Taste, answers: Mapping[Ask, Sequence[Answer]], base: Mapping[Ask, Sequence[Answer]]) -> Verdict:
    """Return the verdict over the prompts that both sides answered; every answer of a prompt meets every base answer to it."""
    asks = [ask for ask in answers if answers[ask] and base.get(ask)]
    scores = {ask: [taste.score(ask, answer) for answer in answers[ask]] for ask in asks}
    base_scores = {ask: [taste.score(ask, answer) for answer in base[ask]] for ask in asks}
    per_prompt, outcomes = [], []
    for ask in asks:
        met = [compare(a, b) for a in scores[ask] for b in base_scores[ask]]
        per_prompt.append(sum(met) / len(met))
        outcomes += met
    wins, losses = outcomes.count(1.0), outcomes.count(0.0)
    preference = _mean(per_prompt)
    low, high = wilson(preference, len(asks))
    looks, base_looks = (_looks([side[ask] for ask in asks]) for side in (answers, base))
    return Verdict(
        prompts=len(asks),
        preference=preference,
        low=low,
        high=high,
        decided_preference=wins / (wins + losses) if wins + losses else None,
        decided_share=(wins + losses) / len(outcomes) if outcomes else 0.0,
        mean_score=_mean([s for ask in asks for s in scores[ask]]),
        base_mean_score=_mean([s for ask in asks for s in base_scores[ask]]),
        mean_words=_mean([float(len(words(answer.text))) for ask in asks for answer in answers[ask]]),
        **{f"{name}_share": share for name, share in looks.items()},
        **{f"base_{name}_share": share for name, share in base_looks.items()},
        base_flawless_share=_mean([_mean([float(compare(1.0, b) == 0.5) for b in base_scores[ask]]) for ask in asks]),
    )


def _looks(answers: Sequence[Sequence[Answer]]) -> dict[str, float]:
    """Return how answers look, given those to each prompt."""
    every = [answer for given in answers for answer in given]
    draws = [[given[k].text.strip() for given in answers if k < len(given)] for k in range(max(map(len, answers), default=0))]
    return {
        "distinct": _mean([len(set(texts)) / len(texts) for texts in draws]),
        "finished": _mean([float(complete(answer)) for answer in every]),
        "repeating": _mean([float(repeats_itself(answer.text.strip())) for answer in every]),
        "refusing": _mean([float(refuses(answer.text)) for answer in every]),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
