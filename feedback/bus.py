"""How events travel from serve to feedback: the promise of a bus, and the outbox that serve writes to.

Two buses keep the promise and pass one suite: `feedback.bus_embedded` (a SQLite file) and `feedback.bus_kafka`. A reader's position
in a partition is the offset that it will read next; positions live in the store, next to the rows, and nowhere else.
"""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, Protocol

import structlog

from attune.config import Config
from attune.errors import InvalidRecord, Unavailable
from attune.events import Record
from feedback import outbox_metrics as metrics
from feedback.spool import GroupCommit, Spool

log = structlog.get_logger(__name__)

MAX_RECORD_BYTES = 4_000_000
"""Largest body that travels; the topics are created to take it."""
MAX_OFFERED = 2000
RELAY_WINDOW = 500
"""Events in flight to the broker at most: kafka-python's producer itself has no bound."""


@dataclass(frozen=True, slots=True, order=True)
class Partition:
    """One ordered part of the log."""

    topic: str
    number: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """One record as it was read, with the place where it stood."""

    partition: Partition
    offset: int
    record: Record


class Bus(Protocol):
    """An ordered, durable log; any thread may publish, one thread reads."""

    def publish(self, records: Sequence[Record]) -> None:
        """Return once all records are durable; raises `Unavailable` (some may be in the log), or `InvalidRecord` (never will be)."""

    def assignments(self) -> list[Partition]:
        """Return the partitions that a reader has to read; raises `Unavailable`."""

    def read(self, positions: Mapping[Partition, int], max_events: int, timeout_s: float) -> list[Delivery]:
        """Return what lies at and after the positions, in order within a partition; waits up to `timeout_s` for the first event."""

    def end_offsets(self) -> Mapping[Partition, int]:
        """Return for each partition the offset that its next record will get; raises `Unavailable`."""

    def forget(self, positions: Mapping[Partition, int]) -> None:
        """Allow the log to delete, when its retention has passed, what lies before these positions."""

    def versions(self) -> str:
        """Name the transport with its version."""

    def close(self) -> None:
        """Let go of everything within seconds."""


def check_size(record: Record) -> None:
    """Raise `InvalidRecord` if the record is too large to travel."""
    if len(record.body) > MAX_RECORD_BYTES:
        raise InvalidRecord(f"the event is {len(record.body)} bytes long; {MAX_RECORD_BYTES} are the limit")


def open_bus(config: Config, role: Literal["writer", "reader"]) -> Bus:
    """Return the configured bus; raises `Unavailable` if it cannot be reached now."""
    if config.bus.kind == "kafka":
        from feedback.bus_kafka import KafkaBus  # kafka is loaded only where it is used

        return KafkaBus(config.bus, role)
    from feedback.bus_embedded import EmbeddedBus

    return EmbeddedBus(config.spool_file)


class Outbox:
    """What serve hands its events to: votes are awaited until durable, interactions never make a reply wait."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._commit: GroupCommit | None = None
        self._relay: Relay | None = None
        self._lock = threading.Lock()
        self._in_memory = 0

    async def start(self) -> None:
        """Open the spool; raises `Unavailable`. A broker that is away now is tried again for ever in the background."""
        self._commit = await asyncio.to_thread(GroupCommit, self._config.spool_file)
        if self._config.bus.kind == "kafka":
            self._relay = Relay(self._config)
        metrics.OUTBOX_WAITING.set_function(lambda: self.waiting)

    async def put(self, record: Record) -> None:
        """Return once the record is durable here; raises `Unavailable` if it is not (it may have been written all the same)."""
        await asyncio.wrap_future(self._submit(record))

    def offer(self, record: Record) -> bool:
        """Queue the record without waiting; returns False, and counts, if it had to be given up."""
        try:
            if self._in_memory >= MAX_OFFERED:
                raise Unavailable("the outbox is full")
            self._submit(record).add_done_callback(lambda future: _count_loss(future, record))
        except (Unavailable, InvalidRecord) as error:
            metrics.OUTBOX_SHED.labels("too_large" if isinstance(error, InvalidRecord) else "full").inc()
            log.warning("interaction_shed", interaction_id=record.key, error=str(error))
            return False
        return True

    @property
    def waiting(self) -> int:
        """Events accepted but not yet where the consumer reads them."""
        return self._in_memory + (self._relay.waiting if self._relay else 0)

    async def stop(self) -> None:
        """Make durable what was accepted and end the threads; what the broker has not taken goes out after the next start."""
        if self._commit:
            await asyncio.to_thread(self._commit.close)
        if self._relay:
            await asyncio.to_thread(self._relay.close)

    def _submit(self, record: Record) -> "Future[None]":
        if self._commit is None:
            raise Unavailable("the outbox is not open")
        check_size(record)
        future = self._commit.submit([record])
        with self._lock:
            self._in_memory += 1
        future.add_done_callback(self._settled)
        return future

    def _settled(self, _: "Future[None]") -> None:
        with self._lock:
            self._in_memory -= 1


def _count_loss(future: "Future[None]", record: Record) -> None:
    if not future.cancelled() and future.exception() is not None:
        metrics.OUTBOX_SHED.labels("disk").inc()
        log.error("interaction_lost", interaction_id=record.key, error=str(future.exception()))


class Relay:
    """A thread that moves spool -> broker: window by window, waiting for every acknowledgement, retrying for ever.

    At least once: a record leaves the spool only after the broker has it, so a crash between the two sends it again; the consumer
    drops what it has seen.
    """

    def __init__(self, config: Config, *, idle_s: float = 0.01, max_pause_s: float = 5.0) -> None:
        self._config, self._idle_s, self._max_pause_s = config, idle_s, max_pause_s
        # A deletion that is lost in a power failure only sends a record twice: no fsync of its own is needed.
        self._spool = Spool(config.spool_file, synchronous="NORMAL")
        self.waiting = self._spool.count()
        self._bus: Bus | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread within seconds, the broker reachable or not."""
        self._stop.set()
        self._thread.join(timeout=10.0)

    def _run(self) -> None:
        pause_s = self._idle_s
        while not self._stop.is_set():
            try:
                pause_s = 0.0 if self._move_window() else self._idle_s
            except Exception as error:  # noqa: BLE001  the outer loop of this thread: log, count, back off
                metrics.RELAY_FAILED.inc()
                pause_s = min(self._max_pause_s, max(0.1, 2 * pause_s))
                log.warning("relay_failed", error=f"{type(error).__name__}: {error}", waiting=self.waiting, retry_in_s=pause_s)
            self._stop.wait(pause_s)
        if self._bus is not None:
            self._bus.close()
        self._spool.close()

    def _move_window(self) -> int:
        rows = self._spool.read(0, RELAY_WINDOW)
        self.waiting = self._spool.count() if len(rows) == RELAY_WINDOW else len(rows)
        if not rows:
            return 0
        if self._bus is None:
            self._bus = open_bus(self._config, "writer")
        try:
            self._bus.publish([record for _, record in rows])
        except InvalidRecord:
            self._move_one_by_one(rows)
        else:
            self._spool.remove([offset for offset, _ in rows])
            metrics.RELAYED.inc(len(rows))
        self.waiting -= len(rows)
        return len(rows)

    def _move_one_by_one(self, rows: Sequence[tuple[int, Record]]) -> None:
        """Find the record that the broker will never take, so that it does not stop those behind it."""
        assert self._bus is not None
        for offset, record in rows:
            try:
                self._bus.publish([record])
            except InvalidRecord as error:
                metrics.RELAY_REFUSED.inc()
                log.error("relay_refused", event_id=record.id, offset=offset, error=str(error))
                self._spool.set_aside((offset, record), str(error))
            else:
                self._spool.remove([offset])
                metrics.RELAYED.inc()
