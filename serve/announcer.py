"""Tells `/metrics` what went live, how it was judged, and how long its votes took to get there."""

import asyncio
import time

import structlog

from attune.errors import RegistryError, Unavailable
from attune.registry import Registry
from attune.types import ArtifactKind, Version
from feedback.views import Views
from serve import metrics

log = structlog.get_logger()


class Announcer:
    """Puts on `/metrics` what went live, how it was judged, and how long its votes took to get there."""

    def __init__(self, registry: Registry, views: Views) -> None:
        self.registry, self.views, self.started_at = registry, views, time.time()
        self._told: dict[ArtifactKind, int] = {}
        self._counted = set[tuple[ArtifactKind, int]]()

    async def __call__(self, kind: ArtifactKind, number: int) -> None:
        """Show a version; the votes of one that was live before are not counted again: after a roll-back, or an engine's death."""
        if number == 0:
            metrics.forget_report(kind)
            return
        try:
            version = await asyncio.to_thread(self.registry.version, kind, number)
            since = await asyncio.to_thread(self.registry.live_since, kind, number)
            fresh = since is not None and since >= self.started_at and (kind, number) not in self._counted
            events = await asyncio.to_thread(self._events, kind, version)
            received = await asyncio.to_thread(self.views.received_at, events) if fresh else []
            self._told[kind] = number
            self._counted.add((kind, number))
            metrics.live(version, received, time.time())
        except (Unavailable, RegistryError):
            metrics.LOOP_FAILURES.labels("announce").inc()
            log.exception("announcement_failed", kind=kind, version=number)

    def _events(self, kind: ArtifactKind, version: Version) -> list[str]:
        """Return the votes that go live with a version: its own, and those of what it was made from that never went live itself."""
        events, told = list(version.events), self._told.get(kind)
        while told is not None and version.parent > told:
            version = self.registry.version(kind, version.parent)
            events += version.events
        return events
