"""The loop of the feedback program: read, judge, write rows and offsets in one transaction, go on.

The log keeps what was read, and the offsets move only with the rows, so whatever fails here is done again and counts once. What
an event changes is decided in `feedback.join`, what is a bad one in `feedback.dead_letters`.
"""

import random
import threading
import time
from collections.abc import Mapping, Sequence

import structlog

from attune.config import FeedbackSection
from attune.errors import InvalidRecord, TooManyDeadLetters, Unavailable
from attune.types import Feedback
from feedback import metrics
from feedback.bus import Bus, Delivery, Partition
from feedback.dead_letters import Judged, judge, letter
from feedback.join import Changes
from feedback.store import Fenced, Store

log = structlog.get_logger(__name__)

READ_TIMEOUT_S = 0.25
MAX_PAUSE_S = 5.0
SWEEP_EVERY_S = 5.0


class Consumer:
    """Moves events from a bus into a store; two at once are safe, and one of them does the work."""

    def __init__(self, bus: Bus, store: Store, section: FeedbackSection) -> None:
        self._bus, self._store, self._section = bus, store, section
        self._positions: dict[Partition, int] | None = None
        self._run_of_bad = 0
        self._swept_at = 0.0

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; raises `TooManyDeadLetters`, and nothing else."""
        pause_s = 0.0
        while not stop.wait(pause_s):
            try:
                self.step()
                pause_s = 0.0
            except TooManyDeadLetters:
                raise
            except Exception as error:  # noqa: BLE001  the outer loop: log, count, back off
                self._positions = None  # whether the last transaction was committed, only the store knows
                pause_s = min(MAX_PAUSE_S, max(0.1, 2 * pause_s)) * random.uniform(0.7, 1.0)
                _count_failure(error, pause_s)

    def step(self) -> int:
        """Do one round and return how many events it took; raises `Unavailable`, `Fenced` or `TooManyDeadLetters`."""
        if self._positions is None:
            self._positions = self._store.offsets(self._bus.assignments())
        deliveries = self._bus.read(self._positions, self._section.batch_events, READ_TIMEOUT_S)
        if deliveries:
            self._write(deliveries)
            self._bus.forget(self._positions)
        self._sweep()
        metrics.HEARTBEAT.set_to_current_time()
        return len(deliveries)

    def _write(self, deliveries: Sequence[Delivery]) -> None:
        """Write a batch; where the database refuses a value, find the event that holds it and set that aside."""
        assert self._positions is not None
        judged = judge(deliveries, self._run_of_bad, self._section.max_dead_letters_in_a_row)
        after = _after(self._positions, deliveries)
        try:
            changes = self._store.write(judged.events, judged.dead, before=self._positions, after=after)
        except InvalidRecord as error:
            if len(deliveries) > 1:
                middle = len(deliveries) // 2
                self._write(deliveries[:middle])
                self._write(deliveries[middle:])
                return
            judged = Judged((), (letter(deliveries[0], str(error)),), self._run_of_bad + 1)
            changes = self._store.write((), judged.dead, before=self._positions, after=after)
        self._positions, self._run_of_bad = after, judged.run
        _observe(judged, changes)

    def _sweep(self) -> None:
        """Now and then give up the oldest orphans and measure how far behind we are."""
        now = time.time()
        if abs(now - self._swept_at) < SWEEP_EVERY_S:
            return
        self._swept_at = now
        expired = self._store.expire_orphans(now - self._section.orphan_lifetime_s)
        if expired:
            metrics.ORPHANS_EXPIRED.inc(expired)
            log.warning("orphans_expired", votes=expired)
        metrics.ORPHANS.set(self._store.counts().orphans)
        ends, positions = self._bus.end_offsets(), self._positions or {}
        metrics.LAG.set(sum(max(0, end - positions.get(partition, 0)) for partition, end in ends.items()))


def _after(positions: Mapping[Partition, int], deliveries: Sequence[Delivery]) -> dict[Partition, int]:
    return {**positions, **{delivery.partition: delivery.offset + 1 for delivery in deliveries}}


def _observe(judged: Judged, changes: Changes) -> None:
    now = time.time()
    for dead in judged.dead:
        metrics.DEAD_LETTERS.inc()
        log.warning("dead_letter", topic=dead.partition.topic, partition=dead.partition.number, offset=dead.offset, reason=dead.reason)
    for event in judged.events:
        metrics.EVENTS.labels(type(event).__name__.lower()).inc()
        if isinstance(event, Feedback):
            metrics.QUERYABLE_SECONDS.observe(max(0.0, now - event.received_at))
    for reason, number in changes.ignored.items():
        metrics.IGNORED.labels(reason).inc(number)
        log.info("events_ignored", reason=reason, events=number)
    votes = [vote for vote in changes.votes.values() if vote.position is None]
    if votes:
        log.info("orphans_stored", votes=len(votes))


def _count_failure(error: Exception, pause_s: float) -> None:
    counter = metrics.FENCED if isinstance(error, Fenced) else metrics.UNAVAILABLE if isinstance(error, Unavailable) else metrics.FAILED
    counter.inc()
    known = isinstance(error, Fenced | Unavailable)
    report = log.warning if known else log.exception
    report("round_failed", reason=type(error).__name__, error=str(error), retry_in_s=round(pause_s, 2))
