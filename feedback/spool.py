"""A log of events in one SQLite file: durable when it says so, ordered, read by many processes.

`Spool` is the file, `GroupCommit` the thread through which many writers share one `fsync`. In embedded mode this log is what the
consumer reads; with Kafka it is the outbox that the relay empties. What an event means is left to `attune.events`.
"""

import json
import queue
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import structlog

from attune.errors import Unavailable
from attune.events import Record
from feedback import outbox_metrics as metrics
from feedback.sqlite import write_ahead

log = structlog.get_logger(__name__)

TIMEOUT_S = 10.0
"""How long one program waits for another to let go of the file."""

Row = tuple[int, Record]
"""Offset and record."""

# AUTOINCREMENT, so that no number is used twice even after the newest rows were deleted. SQLite counts from 1, logs from 0:
# a record's offset is its number less one.
SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, headers TEXT NOT NULL, body BLOB NOT NULL, written_at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS refused (
    offset INTEGER PRIMARY KEY, key TEXT NOT NULL, headers TEXT NOT NULL, body BLOB NOT NULL, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS identity (only INTEGER PRIMARY KEY CHECK (only = 1), id TEXT NOT NULL);
"""


class Spool:
    """One open handle on the log; used by one thread at a time, while other threads and processes have handles of their own."""

    def __init__(self, path: Path, *, synchronous: str = "FULL") -> None:
        """Open the log, creating it if need be; raises `Unavailable` if the file cannot be used."""
        self.path = path
        with _translated(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=TIMEOUT_S, isolation_level=None, check_same_thread=False)
            self._create()
            self._db.execute(f"PRAGMA synchronous = {synchronous}")
            self.id: str = self._db.execute("SELECT id FROM identity").fetchone()[0]
            """Random name of this log: offsets of a log that was deleted and begun anew mean something else."""

    def append(self, records: Sequence[Record]) -> None:
        """Add the records in order, in one commit; they are durable when this returns."""
        now = time.time()
        rows = [(r.key, json.dumps(dict(r.headers)), r.body, now) for r in records]
        with self._transaction() as db:
            db.executemany("INSERT INTO records (key, headers, body, written_at) VALUES (?, ?, ?, ?)", rows)

    def read(self, start: int, limit: int) -> list[Row]:
        """Return up to `limit` rows from offset `start` on, in order."""
        with _translated(self.path):
            rows = self._db.execute(
                "SELECT number - 1, key, headers, body FROM records WHERE number > ? ORDER BY number LIMIT ?", (start, limit)
            ).fetchall()
        return [(offset, Record(key, json.loads(headers), bytes(body))) for offset, key, headers, body in rows]

    def end(self) -> int:
        """Return the offset that the next record will get."""
        with _translated(self.path):
            row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'records'").fetchone()
        return int(row[0]) if row else 0

    def count(self) -> int:
        """Return how many records the log holds."""
        with _translated(self.path):
            return int(self._db.execute("SELECT count(*) FROM records").fetchone()[0])

    def remove(self, offsets: Sequence[int]) -> None:
        """Delete records that have reached the place they were meant for."""
        with self._transaction() as db:
            db.executemany("DELETE FROM records WHERE number = ?", [(offset + 1,) for offset in offsets])

    def set_aside(self, row: Row, reason: str) -> None:
        """Move a record that nobody will ever take out of the way, keeping it for a person to look at."""
        offset, record = row
        with self._transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO refused VALUES (?, ?, ?, ?, ?)",
                (offset, record.key, json.dumps(dict(record.headers)), record.body, reason),
            )
            db.execute("DELETE FROM records WHERE number = ?", (offset + 1,))

    def refused(self) -> list[tuple[Row, str]]:
        """Return what was set aside, oldest first, each with the reason."""
        with _translated(self.path):
            rows = self._db.execute("SELECT offset, key, headers, body, reason FROM refused ORDER BY offset").fetchall()
        return [((offset, Record(key, json.loads(headers), bytes(body))), reason) for offset, key, headers, body, reason in rows]

    def forget_refused(self, offset: int) -> None:
        """Delete what was set aside from this offset."""
        with self._transaction() as db:
            db.execute("DELETE FROM refused WHERE offset = ?", (offset,))

    def trim(self, before: int, written_before: float, limit: int = 5000) -> int:
        """Delete up to `limit` records under offset `before` that were written before that time; return how many."""
        with self._transaction() as db:
            return db.execute(
                "DELETE FROM records WHERE number IN"
                " (SELECT number FROM records WHERE number <= ? AND written_at < ? ORDER BY number LIMIT ?)",
                (before, written_before, limit),
            ).rowcount

    def close(self) -> None:
        self._db.close()

    def _create(self) -> None:
        write_ahead(self._db, TIMEOUT_S)
        self._db.executescript("BEGIN IMMEDIATE;" + SCHEMA + "COMMIT;")
        self._db.execute("INSERT OR IGNORE INTO identity VALUES (1, ?)", (uuid.uuid4().hex[:12],))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with _translated(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise Unavailable(f"the event log {path} cannot be used: {error}") from error


class GroupCommit:
    """Lets many callers share one commit: it waits up to `max_wait_s` or for `group_rows`, commits all, then tells all."""

    def __init__(self, path: Path, *, max_wait_s: float = 0.002, group_rows: int = 20, max_rows: int = 256) -> None:
        self._spool = Spool(path)
        self._max_wait_s, self._group_rows, self._max_rows = max_wait_s, group_rows, max_rows
        self._queue: queue.SimpleQueue[tuple[Sequence[Record], Future[None]] | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="group-commit", daemon=True)
        self._thread.start()

    def submit(self, records: Sequence[Record]) -> "Future[None]":
        """Return a future that resolves once the records are durable, or fails with `Unavailable`."""
        future: Future[None] = Future()
        with self._closing:
            if self._closed:
                raise Unavailable("the outbox is closed")
            self._queue.put((records, future))
        return future

    def close(self) -> None:
        """Commit what was submitted, then end the thread."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        last = False
        while not last:
            group, last = self._collect()
            records = [record for some, _ in group for record in some]
            if records:
                self._commit(records, [future for _, future in group])
        self._spool.close()

    def _collect(self) -> tuple[list[tuple[Sequence[Record], "Future[None]"]], bool]:
        """Return one group, and whether it is the last."""
        group: list[tuple[Sequence[Record], Future[None]]] = []
        rows, deadline = 0, 0.0
        while rows < self._max_rows:
            try:
                # Enough for a group: take what is there already, but wait for nobody.
                wait_s = max(0.0, deadline - time.monotonic()) if rows < self._group_rows else 0.0
                item = self._queue.get(block=wait_s > 0.0, timeout=wait_s) if group else self._queue.get()
            except queue.Empty:
                break
            if item is None:
                return group, True
            if not group:
                deadline = time.monotonic() + self._max_wait_s
            group.append(item)
            rows += len(item[0])
        return group, False

    def _commit(self, records: Sequence[Record], futures: Sequence["Future[None]"]) -> None:
        try:
            with metrics.OUTBOX_COMMIT_SECONDS.time():
                self._spool.append(records)
            metrics.OUTBOX_COMMITTED.inc(len(records))
            failure = None
        except Unavailable as error:
            metrics.OUTBOX_FAILED.inc()
            log.error("spool_commit_failed", events=len(records), error=str(error))
            failure = error
        for future in futures:
            if not future.set_running_or_notify_cancel():
                continue  # the caller has gone; what it handed in is durable all the same
            if failure is None:
                future.set_result(None)
            else:
                future.set_exception(failure)
