"""How well predictions agree with what came: accuracy, AUROC, rank and linear correlation, calibration. Pure; N predictions each."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
BINS = 10
MIN_TO_CALIBRATE = 30
TEMPERATURES = np.exp(np.linspace(math.log(0.2), math.log(5.0), 41))


def auroc(score_N: Numbers, good_N: NDArray[np.bool_]) -> float | None:
    """Return the probability that a good one scores above a bad one, ties half; None where one kind is missing.

    >>> auroc(np.array([0.1, 0.4, 0.9]), np.array([False, True, True]))
    1.0
    """
    good, bad = int(good_N.sum()), int((~good_N).sum())
    if not good or not bad:
        return None
    return float((_ranks(score_N)[good_N].sum() - good * (good + 1) / 2) / (good * bad))


def pearson(x_N: Numbers, y_N: Numbers) -> float | None:
    """Return the linear correlation; None where one side does not vary."""
    if len(x_N) < 3 or x_N.std() < 1e-12 or y_N.std() < 1e-12:
        return None
    return float(np.corrcoef(x_N, y_N)[0, 1])


def spearman(x_N: Numbers, y_N: Numbers) -> float | None:
    """Return the correlation of ranks, ties sharing their mean rank; None where one side does not vary."""
    return pearson(_ranks(x_N), _ranks(y_N))


def reliability(p_N: Numbers, came_N: NDArray[np.bool_]) -> list[tuple[float, float, int]]:
    """Return mean prediction, share that came true, and count, per tenth of the probability scale that holds any."""
    bins_N = np.minimum((p_N * BINS).astype(int), BINS - 1)
    return [
        (float(p_N[inside].mean()), float(came_N[inside].mean()), int(inside.sum()))
        for inside in (bins_N == b for b in range(BINS))
        if inside.any()
    ]


def ece(p_N: Numbers, came_N: NDArray[np.bool_]) -> float:
    """Return the expected calibration error over ten equal bins (Guo et al. 2017)."""
    return sum(abs(p - share) * count for p, share, count in reliability(p_N, came_N)) / len(p_N)


def temperature(margin_N: Sequence[float], came_N: Sequence[bool]) -> float:
    """Return the divisor of the logits under which what came was most likely; 1 where there is too little to say."""
    if len(margin_N) < MIN_TO_CALIBRATE:
        return 1.0
    signed_N = np.where(came_N, 1.0, -1.0) * np.asarray(margin_N)
    loss_T = [np.logaddexp(0.0, -signed_N / t).sum() + 0.5 * math.log(t) ** 2 for t in TEMPERATURES]
    return float(TEMPERATURES[int(np.argmin(loss_T))])


def _ranks(x_N: Numbers) -> Numbers:
    _, inverse_N, count_U = np.unique(x_N, return_inverse=True, return_counts=True)
    last_U = np.cumsum(count_U)
    ranks: Numbers = (last_U - (count_U - 1) / 2)[inverse_N]
    return ranks
