"""Votes that were acknowledged and may not be in the store yet, so that a receipt can be shown at once. Bounded; never the truth."""

import hashlib
import threading
from collections import OrderedDict

from attune.events import new_event_id
from attune.types import Feedback


class Pending:
    """The newest acknowledged votes by id, and the newest idempotency keys; thread-safe."""

    def __init__(self, limit: int = 10_000) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._votes: OrderedDict[str, Feedback] = OrderedDict()
        self._withdrawn: set[str] = set()
        self._keys: OrderedDict[str, tuple[str, str]] = OrderedDict()
        self.received = 0

    def event_id(self, key: str, content: str) -> str:
        """Return the event id of a request sent under an idempotency key: the same for a repetition, and only for that.

        A repetition is recognised after a restart too, since the first id is a hash; other content under a used key is a change of
        mind, which a hash of the key alone would make the store drop after it was acknowledged.
        """
        digest = hashlib.sha256(f"{key}\0{content}".encode()).hexdigest()[:32]
        with self._lock:
            last = self._keys.get(key)
            if last is None or last[0] != digest:
                self._keys[key] = (digest, digest if last is None else new_event_id())
                while len(self._keys) > self._limit:
                    self._keys.popitem(last=False)
            return self._keys[key][1]

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
