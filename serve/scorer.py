"""Scores candidates with the live reward version: one frozen pass of the base model, then a matrix product.

Runs on one thread of its own, so that a request waits for the scores and nothing else does. If the pass fails the request is
answered unranked, counted and logged: a reply matters more than its rank.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import structlog

from attune.config import Config
from attune.errors import AdapterError
from attune.frozen import Answer, FrozenBase, load_base
from attune.reward import RewardModel
from attune.style import NUM_LOOKS
from attune.terms import Terms
from attune.trunk import Trunk
from attune.types import Candidate
from serve import metrics

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Scored:
    """Candidates with features, reference log-probs and scores, and the reward version that gave them."""

    candidates: tuple[Candidate, ...]
    reward_version: int


@dataclass(frozen=True, slots=True)
class Wish:
    """What of a request the operator's terms look at: the question, and weights that stand for the configured ones."""

    question: str
    weights: Mapping[str, float]


class Scorer:
    """The live reward model behind one thread."""

    def __init__(self, base: FrozenBase, pessimism: float, terms: Terms | None = None) -> None:
        self.base, self.pessimism, self.terms = base, pessimism, terms or Terms()
        self._live: tuple[RewardModel, Trunk | None] = (RewardModel.prior(base.feature_width), None)
        self._thread = ThreadPoolExecutor(1, "scorer")

    @classmethod
    def open(cls, config: Config) -> "Scorer":
        """Load the frozen base model in this process, beside the engine."""
        terms = Terms.load(config.terms)
        return cls(FrozenBase(load_base(config.model_folder, config.model.revision)), config.serve.pessimism, terms)

    @property
    def reward(self) -> RewardModel:
        """The live version."""
        return self._live[0]

    def trunk(self, number: int, folder: Callable[[int], Path]) -> Trunk | None:
        """Return the trunk that a version brought, loaded from its folder unless it is live already; None for number 0."""
        reward, trunk = self._live
        if not number or number == reward.trunk:
            return trunk if number else None
        return Trunk.load(self.base, folder(number))

    def adopt(self, model: RewardModel, trunk: Trunk | None = None) -> None:
        """Rank with this model, on its trunk, from the next request on; raises `AdapterError` if it does not fit the base model."""
        width = NUM_LOOKS + self.base.feature_width + (trunk is not None)
        if model.mean_D.shape != (width,):
            raise AdapterError(f"it judges {model.mean_D.shape[0]} numbers of an answer where this base model gives {width}")
        with np.errstate(all="ignore"):
            mean, spread = model.judge(np.stack([np.zeros(width, np.float32), np.ones(width, np.float32)]))
        if not (np.isfinite(mean).all() and np.isfinite(spread).all()):
            raise AdapterError("its judgements are not finite")
        if any(objective.mean_D.shape != (NUM_LOOKS + self.base.feature_width,) for objective in model.objectives.values()):
            raise AdapterError("an objective of it judges another number of features than this base model gives")
        self._live = model, trunk

    async def score(self, prompt: Sequence[int], candidates: tuple[Candidate, ...], temperature: float, wish: Wish) -> Scored:
        """Return the candidates with what the frozen pass saw and their scores.

        Scores: the live reward version's `utility` and `spread`, every term's `term.<name>` and `weight.<name>`, and the `total` of all.
        """
        loop = asyncio.get_running_loop()
        start = time.perf_counter()
        try:
            return await loop.run_in_executor(self._thread, self._score, list(prompt), candidates, temperature, wish)
        except Exception:  # the border between a reply and its rank
            metrics.SCORER_FAILURES.inc()
            log.exception("scorer_failed")
            return Scored(candidates, 0)
        finally:
            metrics.SCORER_SECONDS.observe(time.perf_counter() - start)

    def _score(self, prompt: list[int], candidates: tuple[Candidate, ...], temperature: float, wish: Wish) -> Scored:
        reward, trunk = self._live
        answers = [Answer(c.token_ids, c.finish_reason == "stop") for c in candidates]
        looks = self.base.look(prompt, answers, temperature if temperature > 1e-5 else 1.0, trunk)
        features = [look.features for look in looks]
        texts = [c.text for c in candidates]
        mean, spread = reward.utility(features, texts)
        values = self.terms.values(wish.question, texts, reward.wished(features, texts, self.pessimism))
        total = reward.total(features, texts, self.pessimism, self.terms.bonus(values, wish.weights, len(texts)))
        weights = {f"weight.{t.name}": float(wish.weights.get(t.name, t.weight)) for t in self.terms.terms}
        return Scored(
            tuple(
                replace(
                    look.at(c),
                    scores={"utility": float(mean[i]), "spread": float(spread[i]), "total": float(total[i])}
                    | {f"term.{name}": float(value[i]) for name, value in values.items()}
                    | weights,
                )
                for i, (c, look) in enumerate(zip(candidates, looks, strict=True))
            ),
            reward.version,
        )
