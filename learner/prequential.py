"""Score before you learn: each vote is predicted by the version that served before it, then learned. Pure running figures."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from attune.types import Preference, Rating, Signal

WINDOW = 200


class Prequential:
    """Accuracy and AUROC over the newest predicted votes."""

    def __init__(self) -> None:
        self._pairs: deque[bool] = deque(maxlen=WINDOW)
        self._ratings: deque[tuple[float, bool]] = deque(maxlen=WINDOW)

    def add(self, signal: Signal, utility: Sequence[float]) -> None:
        """Hold one vote against the utilities (by candidate) that were predicted before it was learned."""
        match signal:
            case Preference(tie=False, order=order):
                self._pairs += [utility[a] > utility[b] for i, a in enumerate(order) for b in order[i + 1 :] if utility[a] != utility[b]]
            case Rating(candidate=candidate, level=level, levels=levels) if 2 * level != levels - 1:
                self._ratings.append((utility[candidate], 2 * level > levels - 1))

    def figures(self) -> dict[str, float]:
        """Return `pair_accuracy` and `rating_auroc` where there is enough to say."""
        figures = {}
        if self._pairs:
            figures["pair_accuracy"] = sum(self._pairs) / len(self._pairs)
        auroc = _auroc(list(self._ratings))
        return figures if auroc is None else figures | {"rating_auroc": auroc}


def _auroc(scored: list[tuple[float, bool]]) -> float | None:
    up = np.array([s for s, good in scored if good])
    down = np.array([s for s, good in scored if not good])
    if not len(up) or not len(down):
        return None
    difference = up[:, None] - down[None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())
