"""The bus for one machine: the spool file itself is the log, so an event is where the consumer reads it as soon as it is durable.

One partition, named after the log's random id: a log that was deleted and begun anew is read from its start.
"""

import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog

from attune.events import Record
from feedback.bus import Delivery, Partition, check_size
from feedback.spool import GroupCommit, Spool

log = structlog.get_logger()

POLL_S = 0.02
KEEP_S = 24 * 3600.0
"""What the store holds stays in the log for a day, so that a restored store catches up by itself."""
TRIM_EVERY_S = 60.0


class EmbeddedBus:
    """Writer and reader of one log file; each process has its own."""

    def __init__(self, path: Path, *, keep_s: float = KEEP_S) -> None:
        self._path, self._keep_s = path, keep_s
        self._spool = Spool(path)
        self._partition = Partition(f"embedded-{self._spool.id}", 0)
        self._commit: GroupCommit | None = None
        self._lock = threading.Lock()
        self._trimmed_at = 0.0

    def publish(self, records: Sequence[Record]) -> None:
        for record in records:
            check_size(record)
        with self._lock:
            if self._commit is None:
                self._commit = GroupCommit(self._path)
        self._commit.submit(records).result()

    def assignments(self) -> list[Partition]:
        return [self._partition]

    def read(self, positions: Mapping[Partition, int], max_events: int, timeout_s: float) -> list[Delivery]:
        start, deadline = positions.get(self._partition, 0), time.monotonic() + timeout_s
        if start > (end := self._spool.end()):  # a backup came back that is older than the store: what comes now must not be passed over
            log.error("log_is_older_than_the_store", read_up_to=start, log_ends_at=end, reading_from=0)
            start = 0
        while not (rows := self._spool.read(start, max_events)) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return [Delivery(self._partition, offset, record) for offset, record in rows]

    def end_offsets(self) -> Mapping[Partition, int]:
        return {self._partition: self._spool.end()}

    def forget(self, positions: Mapping[Partition, int]) -> None:
        now = time.monotonic()
        if now - self._trimmed_at >= TRIM_EVERY_S or not self._trimmed_at:
            self._trimmed_at = now
            self._spool.trim(positions.get(self._partition, 0), time.time() - self._keep_s)

    def versions(self) -> str:
        return f"embedded log (SQLite {sqlite3.sqlite_version})"

    def close(self) -> None:
        if self._commit is not None:
            self._commit.close()
        self._spool.close()
