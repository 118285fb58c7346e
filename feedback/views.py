"""What serve may ask the store: read-only, small, never the candidates. Call it off the event loop: it blocks."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import func, select

from attune.types import OVERALL, Feedback, Kind
from feedback.database import fetch, open_engine, reading
from feedback.models import CandidateRow, FeedbackRow, InteractionRow
from feedback.preferences import NOT_LEARNED, unchanged
from feedback.rows import vote_from
from feedback.store import CHUNK, StoreCounts, StoredFeedback, count, select_stored, stored_from

__all__ = ["InteractionSummary", "StoreCounts", "StoredFeedback", "Views"]


@dataclass(frozen=True, slots=True)
class InteractionSummary:
    """What a vote has to fit."""

    id: str
    shown: tuple[int, ...]
    num_candidates: int
    user: str | None
    policy_version: int


class Views:
    """Questions to the store; each raises `Unavailable` while it is away or the consumer has not made it yet."""

    def __init__(self, url: str, objectives: Collection[str] = ()) -> None:
        """Connects only when asked something; raises `ConfigError` if the URL is none. `objectives`: aspects that something learns from."""
        self._objectives = sorted(objectives)
        self._engine = open_engine(url, read_only=True)

    def interaction(self, interaction_id: str) -> InteractionSummary | None:
        """Return what a vote on this interaction has to fit; None while the store does not hold it."""
        columns = (InteractionRow.shown, InteractionRow.num_candidates, InteractionRow.user, InteractionRow.policy_version)
        with reading(self._engine) as db:
            row = db.execute(select(*columns).where(InteractionRow.id == interaction_id)).one_or_none()
        return None if row is None else InteractionSummary(interaction_id, tuple(json.loads(row[0])), row[1], row[2], row[3])

    def receipt(self, feedback_id: str) -> StoredFeedback | None:
        """Return a vote in its latest state; None while the store does not hold it together with its interaction."""
        with reading(self._engine) as db:
            rows = fetch(db, select_stored().where(FeedbackRow.id == feedback_id))
            found = stored_from(rows[0], self._objectives) if rows else None
            if found is None or found.unusable is not None or found.feedback.kind is not Kind.EDIT:
                return found
            index = json.loads(rows[0]["shown"])[found.feedback.choice]
            edited = (CandidateRow.interaction_id == found.feedback.interaction_id, CandidateRow.index == index)
            original = json.loads(db.execute(select(CandidateRow.text).where(*edited)).scalar_one())
        return replace(found, unusable=unchanged(original, found.feedback))

    def orphan(self, feedback_id: str) -> Feedback | None:
        """Return a vote that is stored and waits for its interaction."""
        with reading(self._engine) as db:
            rows = fetch(db, select(FeedbackRow.__table__).where(FeedbackRow.id == feedback_id, FeedbackRow.position.is_(None)))
        return vote_from(rows[0]).feedback if rows else None

    def newest_vote_at(self) -> float:
        """Return when the newest vote in the store was received; 0 if there is none."""
        with reading(self._engine) as db:
            return float(db.execute(select(func.max(FeedbackRow.received_at))).scalar() or 0.0)

    def received_at(self, feedback_ids: Sequence[str]) -> list[float]:
        """Return when those of the votes that are in force were received."""
        times: list[float] = []
        with reading(self._engine) as db:
            for start in range(0, len(feedback_ids), CHUNK):
                wanted = FeedbackRow.id.in_(feedback_ids[start : start + CHUNK])
                times += db.execute(select(FeedbackRow.received_at).where(FeedbackRow.in_force, wanted)).scalars()
        return times

    def counts(self) -> StoreCounts:
        """Return how much the store holds."""
        with reading(self._engine) as db:
            return count(db)

    def learned(self, through: int) -> int:
        """Return how many votes in force that teach something were stored up to a position."""
        kinds = FeedbackRow.kind.not_in([kind.value for kind in NOT_LEARNED])
        overall = FeedbackRow.aspect.is_(None) | (FeedbackRow.aspect == OVERALL)
        objective = FeedbackRow.aspect.in_(self._objectives) & (FeedbackRow.kind != Kind.EDIT.value)
        taught = (FeedbackRow.in_force, FeedbackRow.position <= through, kinds, overall | objective)
        with reading(self._engine) as db:
            return int(db.execute(select(func.count()).select_from(FeedbackRow).where(*taught)).scalar_one())

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()
