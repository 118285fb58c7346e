"""Which rows follow from a batch of events and from what the store holds already: the rules of the join, pure.

Either half of a pair may come first. An event counts once, by its id. Of the changes and withdrawals of one vote the latest by
(received_at, event_id) is in force, in whatever order they arrive. A vote has a position only once its interaction is there, and
gets a new one with every change, so that a reader that goes on from its last position sees all.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from attune.types import Feedback, Interaction, Withdrawal
from feedback.rows import Vote

Event = Interaction | Feedback | Withdrawal


@dataclass(slots=True)
class Known:
    """What the store holds about the ids that a batch names."""

    position: int
    """Highest position given out."""
    interactions: set[str] = field(default_factory=set)
    events: set[str] = field(default_factory=set)
    votes: dict[str, Vote] = field(default_factory=dict)
    """By vote id: those that the batch names, and the orphans of its interactions."""
    withdrawals: dict[str, Withdrawal] = field(default_factory=dict)
    """By vote id."""


@dataclass(slots=True)
class Changes:
    """What is to be written."""

    position: int
    """Highest position given out."""
    interactions: list[tuple[int, Interaction]] = field(default_factory=list)
    votes: dict[str, Vote] = field(default_factory=dict)
    withdrawals: dict[str, Withdrawal] = field(default_factory=dict)
    events: dict[str, str] = field(default_factory=dict)
    """Event id -> vote id."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Why events changed nothing -> how many."""


def join(batch: Sequence[Event], known: Known, now: float) -> Changes:
    """Return what the batch changes; `known` is used up."""
    joining = _Join(known, Changes(known.position), now)
    for event in batch:
        if isinstance(event, Interaction):
            joining.interaction(event)
        elif event.event_id in known.events:
            joining.changes.ignored["duplicate"] += 1
        else:
            known.events.add(event.event_id)
            vote_id = event.id if isinstance(event, Feedback) else event.feedback_id
            joining.changes.events[event.event_id] = vote_id
            if isinstance(event, Feedback):
                joining.vote(event)
            else:
                joining.withdrawal(event)
    return joining.changes


@dataclass(slots=True)
class _Join:
    known: Known
    changes: Changes
    now: float

    def interaction(self, event: Interaction) -> None:
        if event.id in self.known.interactions:
            self.changes.ignored["duplicate"] += 1
            return
        self.known.interactions.add(event.id)
        self.changes.interactions.append((self._next(), event))
        for vote in [v for v in self.known.votes.values() if v.feedback.interaction_id == event.id]:
            self._set(vote)

    def vote(self, event: Feedback) -> None:
        old = self.known.votes.get(event.id)
        if old is not None and _moment(old.feedback) > _moment(event):
            self.changes.ignored["older"] += 1
            return
        withdrawal = self.known.withdrawals.get(event.id)
        in_force = withdrawal is None or _moment(withdrawal) < _moment(event)
        if old is not None and old.in_force and in_force and _says(old.feedback) == _says(event):
            self.changes.ignored["unchanged"] += 1  # news to nobody: it keeps its place, or it would be learned again
            self.known.votes[event.id] = self.changes.votes[event.id] = replace(old, feedback=event)
            return
        self._set(Vote(event, in_force, None, self.now))

    def withdrawal(self, event: Withdrawal) -> None:
        old = self.known.withdrawals.get(event.feedback_id)
        if old is not None and _moment(old) > _moment(event):
            self.changes.ignored["older"] += 1
            return
        self.known.withdrawals[event.feedback_id] = self.changes.withdrawals[event.feedback_id] = event
        vote = self.known.votes.get(event.feedback_id)
        if vote is not None and vote.in_force and _moment(vote.feedback) <= _moment(event):
            self._set(replace(vote, in_force=False, stored_at=self.now))

    def _set(self, vote: Vote) -> None:
        joined = vote.feedback.interaction_id in self.known.interactions
        vote = replace(vote, position=self._next() if joined else None)
        self.known.votes[vote.feedback.id] = self.changes.votes[vote.feedback.id] = vote

    def _next(self) -> int:
        self.changes.position += 1
        return self.changes.position


def _says(event: Feedback) -> tuple[object, ...]:
    return event.kind, event.value, event.choice, event.aspect, event.user, event.interaction_id


def _moment(event: Feedback | Withdrawal) -> tuple[float, str]:
    return event.received_at, event.event_id
