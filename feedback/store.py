"""The store: interactions and votes, joined, each at a position that only grows. The consumer writes it, the learner reads it.

`feedback_after(position)` is how the learner follows: a vote appears once its interaction is there, and again, at a new position,
whenever it was changed or withdrawn. The rules of the join are `feedback.join`; this file is the transactions around them.
"""

import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Table, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from attune.errors import AttuneError, InvalidRecord
from attune.events import decode
from attune.types import Feedback, Interaction, Withdrawal
from feedback.bus import Partition
from feedback.database import fetch, migrate, open_engine, reading, writing
from feedback.dead_letters import DeadLetter, expired
from feedback.join import Changes, Event, Known, join
from feedback.models import (
    Base,
    CandidateRow,
    CounterRow,
    DeadLetterRow,
    EventRow,
    FeedbackRow,
    InteractionRow,
    OffsetRow,
    WithdrawalRow,
)
from feedback.preferences import derive, misfit, objective, teaches, why_unusable
from feedback.rows import Row, check_storable, interaction_from, interaction_rows, vote_from, vote_row

__all__ = ["Fenced", "Store", "StoreCounts", "StoredFeedback", "derive", "objective", "teaches", "why_unusable"]

CHUNK = 500
ORPHANS = Partition("orphans", 0)
"""The place that dead letters of expired votes are filed under."""


class Fenced(AttuneError):
    """Another consumer has moved the offsets: nothing was written; read the offsets again before going on."""


@dataclass(frozen=True, slots=True)
class StoredFeedback:
    """A vote in its latest state."""

    position: int
    feedback: Feedback
    in_force: bool
    """False: withdrawn."""
    stored_at: float
    unusable: str | None = None
    """Why nothing is learned from it (see `feedback.preferences.misfit`)."""


@dataclass(frozen=True, slots=True)
class StoreCounts:
    """How much the store holds; `feedback` counts the votes in force whose interaction is there, `orphans` those without."""

    interactions: int
    feedback: int
    orphans: int
    dead_letters: int


class Store:
    """One database, shared by any number of readers; writers take turns."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @classmethod
    def open(cls, url: str) -> "Store":
        """Open the store, creating or migrating its tables; raises `ConfigError` or `Unavailable`."""
        engine = open_engine(url)
        try:
            migrate(engine)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine)

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def position(self) -> int:
        """Return the highest position given out; 0 if there is none."""
        with reading(self._engine) as db:
            return db.execute(select(CounterRow.value)).scalar_one()

    def feedback_after(self, position: int, limit: int = 1000) -> list[StoredFeedback]:
        """Return the votes at positions above `position`, ascending, each in its latest state, their interactions all there."""
        query = select_stored().where(FeedbackRow.position > position).order_by(FeedbackRow.position).limit(limit)
        with reading(self._engine) as db:
            return [stored_from(row) for row in fetch(db, query)]

    def interactions(self, ids: Iterable[str]) -> dict[str, Interaction]:
        """Return those of the interactions that are there, by id."""
        wanted = sorted(set(ids))
        found: dict[str, Interaction] = {}
        with reading(self._engine) as db:
            for start in range(0, len(wanted), CHUNK):
                query = select(InteractionRow.__table__).where(InteractionRow.id.in_(wanted[start : start + CHUNK]))
                found |= {interaction.id: interaction for _, interaction in _load(db, query)}
        return found

    def interactions_after(self, position: int, limit: int = 1000) -> list[tuple[int, Interaction]]:
        """Return the interactions at positions above `position`, ascending, with their positions."""
        table = InteractionRow.__table__
        with reading(self._engine) as db:
            return _load(db, select(table).where(InteractionRow.position > position).order_by(InteractionRow.position).limit(limit))

    def counts(self) -> StoreCounts:
        """Return how much the store holds."""
        with reading(self._engine) as db:
            return count(db)

    def offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """Return the offset to read next in each partition; 0 where nothing was read yet."""
        with reading(self._engine) as db:
            rows = db.execute(select(OffsetRow.topic, OffsetRow.partition, OffsetRow.next_offset)).all()
        known = {Partition(topic, number): offset for topic, number, offset in rows}
        return {partition: known.get(partition, 0) for partition in partitions}

    def write(
        self,
        batch: Sequence[Event],
        dead: Sequence[DeadLetter] = (),
        *,
        before: Mapping[Partition, int] | None = None,
        after: Mapping[Partition, int] | None = None,
    ) -> Changes:
        """Write events, dead letters and offsets in one transaction, and return what changed.

        Raises `Fenced` if the offsets are not `before` any more, `InvalidRecord` if the database refuses a value (then nothing is
        written), `Unavailable` if it is away (then it may have been written: read the offsets again).
        """
        before, after, now = before or {}, after or {}, time.time()
        with writing(self._engine) as db:
            position = _lock(db)
            for partition, offset in after.items():
                _move_offset(db, partition, before.get(partition, 0), offset)
            changes = join(batch, _known(db, batch, position), now)
            _write_changes(db, changes, now)
            _upsert(db, DeadLetterRow, [_dead_letter_row(letter, now) for letter in dead])
            return changes

    def expire_orphans(self, stored_before: float) -> int:
        """Give up the votes that have waited since before then for their interaction, keep them as dead letters, return how many."""
        too_old = (FeedbackRow.position.is_(None), FeedbackRow.stored_at < stored_before)
        with reading(self._engine) as db:
            if not db.execute(select(FeedbackRow.id).where(*too_old).limit(1)).all():
                return 0
        with writing(self._engine) as db:
            _lock(db)
            votes = [vote_from(row) for row in fetch(db, select(FeedbackRow.__table__).where(*too_old))]
            last = db.execute(select(func.max(DeadLetterRow.offset)).where(DeadLetterRow.topic == ORPHANS.topic)).scalar() or 0
            letters = [expired(vote.feedback, ORPHANS, last + i) for i, vote in enumerate(votes, 1)]
            _upsert(db, DeadLetterRow, [_dead_letter_row(letter, time.time()) for letter in letters])
            # Unseen again, so that a replay of the dead letter is not taken for a duplicate.
            db.execute(delete(EventRow).where(EventRow.event_id.in_([vote.feedback.event_id for vote in votes])))
            db.execute(delete(FeedbackRow).where(*too_old))
        return len(votes)

    def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """Return the oldest dead letters."""
        query = select(DeadLetterRow.__table__).order_by(DeadLetterRow.stored_at, DeadLetterRow.offset).limit(limit)
        with reading(self._engine) as db:
            return [_dead_letter_from(row) for row in fetch(db, query)]

    def discard(self, letter: DeadLetter) -> bool:
        """Delete a dead letter; returns whether it was there."""
        with writing(self._engine) as db:
            return db.execute(delete(DeadLetterRow).where(*_place(letter))).rowcount == 1

    def replay(self, letter: DeadLetter) -> str | None:
        """Take a dead letter's event in after all and delete the letter; returns why it cannot be, or None. Repeating it is harmless."""
        try:
            event = decode(letter.record)
            check_storable(event)
            self.write([event])
        except InvalidRecord as error:
            return str(error)
        self.discard(letter)
        return None


def select_stored() -> Any:
    """Return the query of votes whose interaction is there, with what `stored_from` needs."""
    columns = (FeedbackRow.__table__, InteractionRow.shown, InteractionRow.num_candidates)
    joined = InteractionRow.id == FeedbackRow.interaction_id
    return select(*columns).join(InteractionRow, joined).where(FeedbackRow.position.is_not(None))


def stored_from(row: Mapping[str, Any], objectives: Collection[str] = ()) -> StoredFeedback:
    """Return the vote of a row of `select_stored`; `objectives` are the aspects that something learns from."""
    vote = vote_from(row)
    assert vote.position is not None
    unusable = misfit(tuple(json.loads(row["shown"])), row["num_candidates"], vote.feedback, objectives)
    return StoredFeedback(vote.position, vote.feedback, vote.in_force, vote.stored_at, unusable)


def count(db: Connection) -> StoreCounts:
    """Return how much the store holds, within a transaction."""

    def number(column: Any, *where: Any) -> int:
        return db.execute(select(func.count(column)).where(*where)).scalar_one()

    joined = FeedbackRow.position.is_not(None)
    return StoreCounts(
        interactions=number(InteractionRow.position),
        feedback=number(FeedbackRow.position, FeedbackRow.in_force.is_(True), joined),
        orphans=number(FeedbackRow.in_force, FeedbackRow.in_force.is_(True), ~joined),
        dead_letters=number(DeadLetterRow.offset),
    )


def _lock(db: Connection) -> int:
    """Take the lock of all writers, held until the commit, so that positions become visible in order; return the highest."""
    return db.execute(update(CounterRow).values(value=CounterRow.value).returning(CounterRow.value)).scalar_one()


def _load(db: Connection, query: Any) -> list[tuple[int, Interaction]]:
    rows = fetch(db, query)
    candidates: dict[str, list[Mapping[str, Any]]] = {row["id"]: [] for row in rows}
    ids = list(candidates)
    for start in range(0, len(ids), CHUNK):
        inner = select(CandidateRow.__table__).where(CandidateRow.interaction_id.in_(ids[start : start + CHUNK]))
        for candidate in fetch(db, inner.order_by(CandidateRow.interaction_id, CandidateRow.index)):
            candidates[candidate["interaction_id"]].append(candidate)
    return [(row["position"], interaction_from(row, candidates[row["id"]])) for row in rows]


def _known(db: Connection, batch: Sequence[Event], position: int) -> Known:
    """Return what the store holds about the ids that the batch names."""
    asked = {event.id if isinstance(event, Interaction) else event.interaction_id for event in batch}
    new = {event.id for event in batch if isinstance(event, Interaction)}
    votes = {event.id if isinstance(event, Feedback) else event.feedback_id for event in batch if not isinstance(event, Interaction)}
    events = {event.event_id for event in batch if not isinstance(event, Interaction)}

    waiting = FeedbackRow.interaction_id.in_(new) & FeedbackRow.position.is_(None)
    # Two queries, not an OR: SQLite would scan the table for it.
    rows = [*_rows(db, FeedbackRow, FeedbackRow.id.in_(votes), votes), *_rows(db, FeedbackRow, waiting, new)]
    withdrawals = _rows(db, WithdrawalRow, WithdrawalRow.feedback_id.in_(votes), votes)
    return Known(
        position=position,
        interactions={row["id"] for row in _rows(db, InteractionRow, InteractionRow.id.in_(asked), asked, InteractionRow.id)},
        events={row["event_id"] for row in _rows(db, EventRow, EventRow.event_id.in_(events), events)},
        votes={row["id"]: vote_from(row) for row in rows},
        withdrawals={row["feedback_id"]: Withdrawal(interaction_id="", **row) for row in withdrawals},
    )


def _rows(db: Connection, model: type[Base], where: Any, needed: set[str], *columns: Any) -> Sequence[Mapping[str, Any]]:
    if not needed:
        return []
    return fetch(db, select(*(columns or (model.__table__,))).where(where))


def _write_changes(db: Connection, changes: Changes, now: float) -> None:
    interactions: list[Row] = []
    candidates: list[Row] = []
    for position, interaction in changes.interactions:
        row, inner = interaction_rows(interaction, position, now)
        interactions.append(row)
        candidates += inner
    for model, rows in ((InteractionRow, interactions), (CandidateRow, candidates)):
        if rows:
            db.execute(insert(model), rows)
    if changes.events:
        db.execute(insert(EventRow), [{"event_id": e, "feedback_id": f, "stored_at": now} for e, f in changes.events.items()])
    _upsert(db, FeedbackRow, [vote_row(vote) for vote in changes.votes.values()])
    names = ("event_id", "feedback_id", "received_at")
    _upsert(db, WithdrawalRow, [{name: getattr(w, name) for name in names} for w in changes.withdrawals.values()])
    db.execute(update(CounterRow).values(value=changes.position))


def _upsert(db: Connection, model: type[Base], rows: list[Row]) -> None:
    if not rows:
        return
    table = model.__table__
    assert isinstance(table, Table)
    keys = [column.name for column in table.primary_key]
    statement: Any = (postgresql if db.dialect.name == "postgresql" else sqlite).insert(table)
    replaced = {column.name: statement.excluded[column.name] for column in table.columns if column.name not in keys}
    db.execute(statement.on_conflict_do_update(index_elements=keys, set_=replaced), rows)


def _move_offset(db: Connection, partition: Partition, before: int, after: int) -> None:
    place = (OffsetRow.topic == partition.topic, OffsetRow.partition == partition.number)
    moved = db.execute(update(OffsetRow).where(*place, OffsetRow.next_offset == before).values(next_offset=after)).rowcount
    if moved:
        return
    known = db.execute(select(OffsetRow.next_offset).where(*place)).scalar()
    if known is not None or before != 0:
        raise Fenced(f"partition {partition.topic}/{partition.number} stands at {known or 0}, not at {before}: another consumer is at work")
    db.execute(insert(OffsetRow), [{"topic": partition.topic, "partition": partition.number, "next_offset": after}])


def _dead_letter_row(letter: DeadLetter, now: float) -> Row:
    return {
        "topic": letter.partition.topic,
        "partition": letter.partition.number,
        "offset": letter.offset,
        "reason": json.dumps(letter.reason)[1:-1],
        "attempts": letter.attempts,
        "key": json.dumps(letter.key),
        "headers": json.dumps(dict(letter.headers)),
        "body": letter.body,
        "stored_at": now,
    }


def _dead_letter_from(row: Mapping[str, Any]) -> DeadLetter:
    place = Partition(row["topic"], row["partition"])
    headers, key = json.loads(row["headers"]), json.loads(row["key"])
    return DeadLetter(place, row["offset"], json.loads(f'"{row["reason"]}"'), key, headers, bytes(row["body"]), row["attempts"])


def _place(letter: DeadLetter) -> tuple[Any, ...]:
    topic, number = letter.partition.topic, letter.partition.number
    return DeadLetterRow.topic == topic, DeadLetterRow.partition == number, DeadLetterRow.offset == letter.offset
