"""Whose turn it is to make a policy version: the learner's update and `attune sft` would each throw away what the other made meanwhile.

A lock on a file (flock(2)), which a process that dies gives back.
"""

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def taken(home: Path, before_waiting: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold the turn for as long as a block runs; yields whether it is ours. Who says what to do `before_waiting` waits for it."""
    file = home / "learner" / "turn.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = True
        except BlockingIOError:
            ours = before_waiting is not None
            if before_waiting is not None:
                before_waiting()
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield ours
