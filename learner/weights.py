"""How much each vote counts: trust (no user drowns the others), recency, and how likely its answer was to be shown. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

FULL_VOTES = 50.0
"""Up to here a user's votes count in full; more of them weigh together as the square root of their number."""
MIN_SHARE, SHARE_PER_USER = 0.01, 3.0
"""No user's share of all weight exceeds three times an equal share, and no limit is set below 1%."""


@dataclass(frozen=True, slots=True)
class Cast:
    """What of a vote decides its weight."""

    user: str | None
    """Votes without one are all of one user."""
    received_at: float
    propensity: float
    """Probability that the answer voted on stood where it did."""


def weigh(casts: Sequence[Cast], *, half_life_s: float, max_importance: float) -> list[float]:
    """Return one weight per vote; ages count from the newest vote, so that the same votes weigh the same at any time.

    Importance 1/propensity, at most `max_importance` (1 leaves it out), is brought to a mean of 1: it moves weight between votes only.
    """
    if not casts:
        return []
    newest = max(cast.received_at for cast in casts)
    importance = [min(max_importance, 1.0 / max(cast.propensity, 1e-6)) for cast in casts]
    mean = sum(importance) / len(importance)
    plain = [0.5 ** ((newest - c.received_at) / half_life_s) * i / mean for c, i in zip(casts, importance, strict=True)]
    total: Counter[str | None] = Counter()
    for cast, weight in zip(casts, plain, strict=True):
        total[cast.user] += weight
    whole = {user: min(weight, (FULL_VOTES * weight) ** 0.5) for user, weight in total.items()}
    limit = _limit(sorted(whole.values(), reverse=True), max(MIN_SHARE, SHARE_PER_USER / len(whole)))
    return [weight * min(whole[cast.user], limit) / (total[cast.user] or 1.0) for cast, weight in zip(casts, plain, strict=True)]


def _limit(falling: Sequence[float], share: float) -> float:
    """Return the highest limit that is no more than a share of what weighs in all once everybody is held to it.

    >>> _limit([90.0, 10.0, 10.0, 10.0], 0.4)
    20.0
    """
    rest = sum(falling)
    for held, weight in enumerate(falling):
        limit = share * rest / (1.0 - share * held) if share * held < 1.0 else float("inf")
        if weight <= limit:
            return limit
        rest -= weight
    return falling[-1]
