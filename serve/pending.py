"""Votes that were acknowledged and may not be in the store yet, so that a receipt can be shown at once. Bounded; never the truth."""

import threading
from collections import OrderedDict

from attune.types import Feedback


class Pending:
    """The newest acknowledged votes by id; thread-safe."""

    def __init__(self, limit: int = 10_000) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._votes: OrderedDict[str, Feedback] = OrderedDict()
        self._withdrawn: set[str] = set()
        self.received = 0

    def add(self, feedback: Feedback) -> None:
        """Remember a vote that was just made durable."""
        with self._lock:
            self.received += 1
            self._withdrawn.discard(feedback.id)
            self._votes[feedback.id] = feedback
            self._votes.move_to_end(feedback.id)
            while len(self._votes) > self._limit:
                old, _ = self._votes.popitem(last=False)
                self._withdrawn.discard(old)

    def get(self, ident: str) -> Feedback | None:
        """Return a vote that is among the newest and was not withdrawn."""
        with self._lock:
            return None if ident in self._withdrawn else self._votes.get(ident)

    def withdraw(self, ident: str) -> None:
        """Remember that a vote was taken back."""
        with self._lock:
            if ident in self._votes:
                self._withdrawn.add(ident)
