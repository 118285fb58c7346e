"""Scores candidates with the live reward version: one frozen pass of the base model, then a matrix product.

Runs on one thread of its own, so that a request waits for the scores and nothing else does. If the pass fails the request is
answered unranked, counted and logged: a reply matters more than its rank.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import structlog

from attune.config import Config
from attune.frozen import Answer, FrozenBase, load_base
from attune.reward import RewardModel
from attune.types import Candidate
from serve import metrics

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Scored:
    """Candidates with features, reference log-probs and scores, and the reward version that gave them."""

    candidates: tuple[Candidate, ...]
    reward_version: int


class Scorer:
    """The live reward model behind one thread."""

    def __init__(self, base: FrozenBase, pessimism: float) -> None:
        self.base, self.pessimism = base, pessimism
        self.reward = RewardModel.prior(base.feature_width)
        self._thread = ThreadPoolExecutor(1, "scorer")

    @classmethod
    def open(cls, config: Config) -> "Scorer":
        """Load the frozen base model in this process, beside the engine."""
        return cls(FrozenBase(load_base(config.model_folder, config.model.revision)), config.serve.pessimism)

    async def score(self, prompt: Sequence[int], candidates: tuple[Candidate, ...], temperature: float) -> Scored:
        """Return the candidates with what the frozen pass saw and the live reward version's `total`, `utility`, `spread`."""
        loop = asyncio.get_running_loop()
        start = time.perf_counter()
        try:
            return await loop.run_in_executor(self._thread, self._score, list(prompt), candidates, temperature)
        except Exception:  # the border between a reply and its rank
            metrics.SCORER_FAILURES.inc()
            log.exception("scorer_failed")
            return Scored(candidates, 0)
        finally:
            metrics.SCORER_SECONDS.observe(time.perf_counter() - start)

    def _score(self, prompt: list[int], candidates: tuple[Candidate, ...], temperature: float) -> Scored:
        reward = self.reward
        answers = [Answer(c.token_ids, c.finish_reason == "stop") for c in candidates]
        looks = self.base.look(prompt, answers, temperature if temperature > 1e-5 else 1.0)
        features = [look.features for look in looks]
        mean, spread = reward.utility(features)
        total = reward.total(features, [c.text for c in candidates], self.pessimism)
        return Scored(
            tuple(
                replace(
                    c,
                    features=look.features,
                    ref_logprobs=look.ref_logprobs,
                    scores={"utility": float(mean[i]), "spread": float(spread[i]), "total": float(total[i])},
                )
                for i, (c, look) in enumerate(zip(candidates, looks, strict=True))
            ),
            reward.version,
        )
