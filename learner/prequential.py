"""Score before you learn: each vote is predicted by the version that served before it, then learned. Running figures.

Every vote becomes predictions of yes or no: a pair, which of the two is better; a tie, whether of good answers; a thumb, up or down;
stars, above or below the middle. Figures per kind of vote and over all of them, on the newest
of each.
"""

import json
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import structlog

from attune.reward import Scale
from attune.types import Demonstration, Kind, Preference, Rating, Signal
from learner import statistics

log = structlog.get_logger()

WINDOW = 200
OVERALL, TIE = "overall", "tie"


@dataclass(frozen=True, slots=True)
class Prediction:
    """What was predicted of a vote, and what it said."""

    margin: float
    """Logit of yes, before calibration."""
    probability: float
    value: float
    """0 (no) to 1 (yes); one half says neither."""


class Prequential:
    """The newest predictions, and how good they were."""

    def __init__(self, file: Path | None = None, window: int = WINDOW) -> None:
        """`window`: newest predictions kept per kind of vote."""
        self._file, self._window, self._seen = file, window, dict[str, deque[Prediction]]()

    @classmethod
    def load(cls, file: Path) -> "Prequential":
        """Return what `save` kept in a file, which it will be kept in again; nothing, where there is none that can be read."""
        kept = cls(file)
        try:
            for kind, seen in json.loads(file.read_bytes()).items():
                kept._seen[kind] = deque((Prediction(*each) for each in seen), maxlen=WINDOW)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, AttributeError) as error:
            log.warning("predictions_lost", file=str(file), reason=str(error))
            kept._seen.clear()
        return kept

    def save(self) -> None:
        """Keep the predictions for the next start. Losing them costs figures, never votes: a disk that refuses is logged."""
        if self._file is None:
            return
        aside = self._file.with_suffix(".new")
        try:
            aside.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(json.dumps({kind: [astuple(p) for p in seen] for kind, seen in self._seen.items()}))
            aside.replace(self._file)
        except OSError as error:
            log.warning("predictions_not_kept", file=str(self._file), reason=str(error))

    def add(self, signal: Signal, utility: Sequence[float], scale: Scale, edited: float | None = None) -> None:
        """Hold one vote against the utilities (by candidate; `edited`: of the edited text) that were predicted before it was learned."""
        match signal:
            case Preference(tie=False, order=order):
                for a, b in combinations(order, 2):
                    self._keep_pair(signal.source, utility[a] - utility[b], scale, turned=a > b)
            case Preference(good=bool(good), order=(a, b)):
                self._keep_thumb(TIE, (utility[a] + utility[b]) / 2, scale, good)
            case Demonstration(candidate=candidate) if edited is not None:
                self._keep_pair(Kind.EDIT, edited - utility[candidate], scale, turned=signal.feedback_id[-1:] < "8")
            case Rating(candidate=candidate, level=level, levels=2):
                self._keep_thumb(Kind.THUMB, utility[candidate], scale, bool(level))
            case Rating(candidate=candidate, level=level, levels=levels):
                margin = scale.star_margin(utility[candidate])
                self._keep(signal.source, Prediction(margin, scale.probability(margin), level / (levels - 1)))

    def figures(self) -> dict[str, float]:
        """Return `<kind>_<figure>` with figures `accuracy`, `auroc`, `spearman`, `pearson`, `ece`, `predicted`; kinds also `overall`."""
        everything = [p for seen in self._seen.values() for p in seen]
        kinds: Mapping[str, Sequence[Prediction]] = {kind: list(seen) for kind, seen in self._seen.items()} | {OVERALL: everything}
        found = {f"{kind}_{name}": value for kind, seen in kinds.items() if seen for name, value in _figures(seen).items()}
        return {name: round(value, 4) for name, value in found.items() if value is not None}

    def reliability(self) -> list[tuple[float, float, int]]:
        """Return the calibration curve over all kinds (see `statistics.reliability`)."""
        said = self._said()
        return statistics.reliability(np.array([p.probability for p in said], float), np.array([p.value > 0.5 for p in said], bool))

    def temperature(self) -> float:
        """Return the divisor that calibrates the newest predictions."""
        said = self._said()
        return statistics.temperature([p.margin for p in said], [p.value > 0.5 for p in said])

    def log_loss(self) -> tuple[float, float]:
        """Return the mean log-loss of the predictions at the temperature that suits them best, in nats, and that temperature."""
        said, temperature = self._said(), self.temperature()
        signed = [(p.margin if p.value > 0.5 else -p.margin) / temperature for p in said]
        return float(np.logaddexp(0.0, -np.array(signed)).mean()) if signed else math.log(2.0), temperature

    def _said(self) -> list[Prediction]:
        """Return the predictions whose vote said yes or no."""
        return [p for seen in self._seen.values() for p in seen if p.value != 0.5]

    def _keep_pair(self, kind: Kind, margin: float, scale: Scale, *, turned: bool) -> None:
        """Keep a pair, half of them the other way round: else every answer would be yes."""
        margin = -margin if turned else margin
        self._keep(kind, Prediction(margin, scale.probability(margin), 0.0 if turned else 1.0))

    def _keep_thumb(self, kind: str, utility: float, scale: Scale, up: bool) -> None:
        margin = utility + scale.thumb_bias
        self._keep(kind, Prediction(margin, scale.probability(margin), float(up)))

    def _keep(self, kind: str, prediction: Prediction) -> None:
        self._seen.setdefault(str(kind), deque(maxlen=self._window)).append(prediction)


def _figures(seen: Sequence[Prediction]) -> dict[str, float | None]:
    margin_N, value_N = np.array([p.margin for p in seen]), np.array([p.value for p in seen])
    decided_N = value_N != 0.5
    said = [p for p in seen if p.value != 0.5]
    told_N = decided_N & (margin_N != 0)
    return {
        "predicted": float(len(seen)),
        "accuracy": float(((margin_N > 0) == (value_N > 0.5))[told_N].mean()) if told_N.any() else None,
        "auroc": statistics.auroc(margin_N[decided_N], value_N[decided_N] > 0.5),
        "spearman": statistics.spearman(margin_N, value_N),
        "pearson": statistics.pearson(margin_N, value_N),
        "ece": statistics.ece(np.array([p.probability for p in said], float), np.array([p.value > 0.5 for p in said])) if said else None,
    }
