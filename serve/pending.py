"""Votes that were acknowledged and may not be in the store yet, so that a receipt can be shown at once. Bounded; never the truth."""

import hashlib
import threading
from collections import OrderedDict

from attune.events import new_event_id
from attune.types import Feedback

STEP_S = 1e-6
"""What two words on one vote lie apart at least: the last one counts, by their times."""


class Pending:
    """The newest acknowledged votes by id, and the newest idempotency keys; thread-safe."""

    def __init__(self, limit: int = 10_000) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._votes: OrderedDict[str, Feedback] = OrderedDict()
        self._withdrawn: dict[str, float] = {}
        self._keys: OrderedDict[str, tuple[str, str, float]] = OrderedDict()

    def event(self, key: str, content: str, now: float, *, fresh: bool = False) -> tuple[str, float]:
        """Return event id and time of a request sent under an idempotency key: those of the first for a repetition (not if `fresh`).

        A repetition is recognised after a restart too, since the first id is a hash; other content under a used key is a change of
        mind, which a hash of the key alone would make the store drop after it was acknowledged.
        """
        digest = hashlib.sha256(f"{key}\0{content}".encode()).hexdigest()[:32]
        with self._lock:
            last = self._keys.get(key)
            if last is None or last[0] != digest or fresh:
                self._keys[key] = (digest, digest if last is None and not fresh else new_event_id(), now)
                while len(self._keys) > self._limit:
                    self._keys.popitem(last=False)
            return self._keys[key][1:]

    def add(self, feedback: Feedback) -> None:
        """Remember a vote that was just made durable, unless it repeats what was changed since."""
        with self._lock:
            known = self._votes.get(feedback.id)
            if known is not None and known.received_at > feedback.received_at:
                return
            self._withdrawn.pop(feedback.id, None)
            self._votes[feedback.id] = feedback
            self._votes.move_to_end(feedback.id)
            while len(self._votes) > self._limit:
                old, _ = self._votes.popitem(last=False)
                self._withdrawn.pop(old, None)

    def get(self, ident: str) -> Feedback | None:
        """Return a vote that is among the newest and was not withdrawn."""
        with self._lock:
            return None if ident in self._withdrawn else self._votes.get(ident)

    def withdrawn(self, ident: str) -> bool:
        """Whether a vote was taken back and not given again, as far as is remembered."""
        with self._lock:
            return ident in self._withdrawn

    def since(self, moment: float) -> int:
        """Return how many votes among the newest were received after a moment (seconds since the epoch) and not taken back."""
        with self._lock:
            return sum(vote.received_at > moment and ident not in self._withdrawn for ident, vote in self._votes.items())

    def withdraw(self, ident: str, now: float) -> None:
        """Remember that a vote was taken back."""
        with self._lock:
            if ident in self._votes:
                self._withdrawn[ident] = now

    def after(self, ident: str, now: float) -> float:
        """Return the time of the next word on a vote: now, or just after the last one where the clock has been set back since."""
        with self._lock:
            vote = self._votes.get(ident)
            last = max(0.0 if vote is None else vote.received_at, self._withdrawn.get(ident, 0.0))
            return max(now, last + STEP_S)
