"""The loop of a hot swap: follow the registry; check, load, prove, flip, drain, unload.

Whatever fails before the flip leaves the old version serving; the reason is kept, logged and counted. A version that was refused is
not tried again by this server, and the newest earlier champion that is not refused serves in its place. The same loop puts a new
engine in the place of one that died, and brings the champion back into service on it.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from attune.config import Config
from attune.errors import AdapterError, RegistryError, Unavailable
from attune.registry import Registry
from attune.reward import RewardModel
from attune.types import ArtifactKind
from serve import adapter, metrics
from serve.engine import Engine
from serve.scorer import Scorer
from serve.slot import Policy, Slots

log = structlog.get_logger()

Announce = Callable[[ArtifactKind, int], Awaitable[None]]

POLL_S = 0.25
LONGEST_PAUSE_S = 8.0
KEEP_LOADED = 4
MAX_DEATHS = 2
"""A version on which the engine died this often is refused; once may be chance."""
MAX_FAILED_REBUILDS = 3


class Swapper:
    """Brings promoted versions into service without a request noticing."""

    def __init__(
        self, config: Config, registry: Registry, engine: Engine, slots: Slots, scorer: Scorer, base: adapter.Shapes, announce: Announce
    ) -> None:
        """`announce` is told of every version that went live here; it must not raise."""
        self.config, self.registry, self.engine, self.slots, self.scorer, self.base = config, registry, engine, slots, scorer, base
        self._announce = announce
        self.refused: dict[tuple[ArtifactKind, int], str] = {}
        self._deaths: Counter[int] = Counter()
        self._failed_rebuilds = 0

    @property
    def hopeless(self) -> bool:
        """Whether the engine died and could not be replaced: only a new process can help."""
        return self._failed_rebuilds >= MAX_FAILED_REBUILDS

    async def begin(self) -> None:
        """Bring the champions into service before anybody is answered; one that kills the engine is refused, as it would be later."""
        while not self.hopeless:
            try:
                return await self.once()
            except Unavailable as error:
                metrics.LOOP_FAILURES.labels("swap").inc()
                log.warning("engine_died_at_start", error=str(error))

    async def follow(self) -> None:
        """Follow the registry until cancelled."""
        pause_s = POLL_S
        while not self.hopeless:
            try:
                await self.once()
                pause_s = POLL_S
            except Exception as error:  # outer loop: the next round tries again
                metrics.LOOP_FAILURES.labels("swap").inc()
                pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
                log.exception("swap_round_failed", error=str(error), retry_in_s=pause_s)
            await asyncio.sleep(pause_s)

    async def once(self) -> None:
        """Bring into service the newest champions that this server does not refuse, walking down as far as it has to."""
        if self.engine.dead:
            await self._revive()
        while (reward := self._wanted("reward")) != self.scorer.reward.version:
            await self._guarded("reward", reward, self._swap_reward)
        while (policy := self._wanted("policy")) != self.slots.live:
            await self._guarded("policy", policy, self._swap_policy)
        self.slots.suspended = False
        self.slots.retire(KEEP_LOADED)
        for old in self.slots.drained():
            if old.adapter is not None:
                await self.engine.unload(old.adapter)

    async def _swap_policy(self, number: int) -> None:
        started = time.perf_counter()
        if number not in self.slots.numbers:
            folder = await asyncio.to_thread(self._verified, "policy", number)
            limits = adapter.Limits(self.config.model.lora_rank, self.engine.max_context_tokens)
            fingerprint = await asyncio.to_thread(adapter.check, folder, self.base, limits)
            try:
                self.slots.add(await self._proved(number, folder, fingerprint))
            except Unavailable as error:
                self._deaths[number] += 1
                if self._deaths[number] >= MAX_DEATHS:
                    raise AdapterError(f"the engine died {MAX_DEATHS} times while it was being proved") from error
                raise
        self.slots.flip(number, time.time())
        metrics.POLICY_VERSION.set(number)
        metrics.SWAP_SECONDS.observe(time.perf_counter() - started)

    async def _proved(self, number: int, folder: Path, fingerprint: adapter.Fingerprint) -> Policy:
        handle = await self.engine.load(number, folder)
        try:
            seen = [await self.engine.logprobs(handle, s.prompt_token_ids, s.token_ids) for s in fingerprint.sequences]
            distance = adapter.judge(fingerprint, seen, self.config.serve.fingerprint_tolerance_nats)
        except Exception:
            await self.engine.unload(handle)
            raise
        log.info("fingerprint_matched", policy_version=number, mean_abs_difference_nats=round(distance, 4))
        return Policy(number, handle)

    async def _swap_reward(self, number: int) -> None:
        if number == 0:
            model = RewardModel.prior(self.scorer.base.feature_width)
        else:
            folder = await asyncio.to_thread(self._verified, "reward", number)
            model = await asyncio.to_thread(RewardModel.load, folder)
        trunk = await asyncio.to_thread(self.scorer.trunk, model.trunk, lambda brought: self._verified("reward", brought))
        self.scorer.adopt(model, trunk)
        metrics.REWARD_VERSION.set(number)

    async def _revive(self) -> None:
        log.error("engine_died", policy_version=self.slots.live)
        metrics.ENGINE_DEATHS.inc()
        self.slots.forget_all()
        started = time.perf_counter()
        self._failed_rebuilds += 1  # taken back below: it counts even if what is raised goes round this loop's handler
        await self.engine.rebuild()
        self._failed_rebuilds = 0
        log.info("engine_rebuilt", seconds=round(time.perf_counter() - started, 2))

    async def _guarded(self, kind: ArtifactKind, number: int, swap: Callable[[int], Awaitable[None]]) -> None:
        try:
            await swap(number)
        except (AdapterError, RegistryError) as error:
            self.refused[kind, number] = str(error)
            metrics.REFUSED.labels(kind).inc()
            log.error("version_refused", kind=kind, version=number, reason=str(error))
            if self.engine.dead:
                raise Unavailable("the engine died") from error
        else:
            metrics.SWAPS.labels(kind).inc()
            log.info("version_live", kind=kind, version=number)
            await self._announce(kind, number)

    def _wanted(self, kind: ArtifactKind) -> int:
        return next(n for n in self.registry.champions(kind) if (kind, n) not in self.refused)

    def _verified(self, kind: ArtifactKind, number: int) -> Path:
        version = self.registry.verify(kind, number)
        ours = self.config.model_identity
        if version.base_model != ours:
            raise AdapterError(f"it was trained on {version.base_model}, this server runs {ours}")
        return self.registry.folder(kind, number)
