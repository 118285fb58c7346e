"""Which candidates a person gets to see, and how likely that was: pure.

`full` shows the best by `total`; equal totals are broken at random, so that a reward model that knows nothing shows every candidate
alike. `off` shows the first ones sampled. Propensities are those of the rule given the candidates (needed by off-policy estimates).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Choice:
    """Candidate indexes in the order shown, with the probability of each standing at its place."""

    shown: tuple[int, ...]
    propensities: tuple[float, ...]


def choose(totals: Sequence[float], wanted: int, *, rerank: bool, rng: random.Random) -> Choice:
    """Return the `wanted` candidates to show, best first.

    >>> choose([0.1, 0.9, 0.5], 2, rerank=True, rng=random.Random(0))
    Choice(shown=(1, 2), propensities=(1.0, 1.0))
    """
    if not rerank:
        return Choice(tuple(range(wanted)), (1.0,) * wanted)
    order = sorted(range(len(totals)), key=lambda i: (-totals[i], rng.random()))
    shown = order[:wanted]
    ties = [sum(t == totals[i] for t in totals) for i in shown]
    return Choice(tuple(shown), tuple(1.0 / n for n in ties))
