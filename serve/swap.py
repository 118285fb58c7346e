"""The loop of a hot swap: follow the registry; check, load, prove, flip, drain, unload.

Whatever fails before the flip leaves the old version serving; the reason is kept, logged and counted. A version that was refused is
not tried again by this server, and the newest earlier champion that is not refused serves in its place.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from attune.config import Config
from attune.errors import AdapterError, RegistryError
from attune.registry import Registry
from attune.reward import RewardModel
from attune.types import ArtifactKind
from serve import adapter, metrics
from serve.engine import Engine
from serve.scorer import Scorer
from serve.slot import Policy, Slots

log = structlog.get_logger()

POLL_S = 0.25
KEEP_LOADED = 4


class Swapper:
    """Brings promoted versions into service without a request noticing."""

    def __init__(self, config: Config, registry: Registry, engine: Engine, slots: Slots, scorer: Scorer, base: adapter.Shapes) -> None:
        self.config, self.registry, self.engine, self.slots, self.scorer, self.base = config, registry, engine, slots, scorer, base
        self.refused: dict[tuple[ArtifactKind, int], str] = {}

    async def follow(self) -> None:
        """Follow the registry until cancelled."""
        while True:
            try:
                await self.once()
            except Exception:  # outer loop: the next round tries again
                metrics.LOOP_FAILURES.labels("swap").inc()
                log.exception("swap_round_failed")
            await asyncio.sleep(POLL_S)

    async def once(self) -> None:
        """Bring the newest champions into service that this server has not refused."""
        if (reward := self._wanted("reward")) != self.scorer.reward.version:
            await self._guarded("reward", reward, self._swap_reward)
        if (policy := self._wanted("policy")) != self.slots.live:
            await self._guarded("policy", policy, self._swap_policy)
        await self._unload_surplus()

    async def _swap_policy(self, number: int) -> None:
        started = time.perf_counter()
        if number not in self.slots.numbers:
            folder = await asyncio.to_thread(self._verified, "policy", number)
            fingerprint = await asyncio.to_thread(adapter.check, folder, self.base, self.config.model.lora_rank)
            handle = await self.engine.load(number, folder)
            try:
                seen = [await self.engine.logprobs(handle, s.prompt_token_ids, s.token_ids) for s in fingerprint.sequences]
                distance = adapter.judge(fingerprint, seen, self.config.serve.fingerprint_tolerance_nats)
            except AdapterError:
                await self.engine.unload(handle)
                raise
            self.slots.add(Policy(number, handle))
            log.info("fingerprint_matched", policy_version=number, mean_abs_difference_nats=round(distance, 4))
        self.slots.flip(number, time.time())
        metrics.POLICY_VERSION.set(number)
        metrics.SWAP_SECONDS.observe(time.perf_counter() - started)

    async def _swap_reward(self, number: int) -> None:
        if number == 0:
            model = RewardModel.prior(self.scorer.base.feature_width)
        else:
            folder = await asyncio.to_thread(self._verified, "reward", number)
            model = await asyncio.to_thread(RewardModel.load, folder)
        self.scorer.reward = model
        metrics.REWARD_VERSION.set(number)

    async def _unload_surplus(self) -> None:
        for policy in self.slots.surplus(KEEP_LOADED):
            if not self.slots.leased(policy.number):
                self.slots.remove(policy.number)
                await self.engine.unload(policy.adapter)

    async def _guarded(self, kind: ArtifactKind, number: int, swap: Callable[[int], Awaitable[None]]) -> None:
        try:
            await swap(number)
        except (AdapterError, RegistryError) as error:
            self.refused[kind, number] = str(error)
            metrics.REFUSED.labels(kind).inc()
            log.error("version_refused", kind=kind, version=number, reason=str(error))
        else:
            metrics.SWAPS.labels(kind).inc()
            log.info("version_live", kind=kind, version=number)

    def _wanted(self, kind: ArtifactKind) -> int:
        return next(n for n in self.registry.champions(kind) if (kind, n) not in self.refused)

    def _verified(self, kind: ArtifactKind, number: int) -> Path:
        version = self.registry.verify(kind, number)
        ours = self.config.model_identity
        if version.base_model != ours:
            raise AdapterError(f"it was trained on {version.base_model}, this server runs {ours}")
        return self.registry.folder(kind, number)
