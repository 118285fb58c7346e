"""What every SQLite file of ours needs that SQLite does not do by itself."""

import sqlite3
import time


def write_ahead(connection: sqlite3.Connection, timeout_s: float) -> None:
    """Keep a write-ahead log; raises `sqlite3.OperationalError` if others hold the file for longer than the timeout.

    The switch ignores the connection's own timeout, so programs that start together have to try more than once.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) or time.monotonic() > deadline:
                raise
        time.sleep(0.02)
