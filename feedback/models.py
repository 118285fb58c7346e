"""The tables of the store, as SQLAlchemy sees them; `feedback/migrations` brings a database to them, on SQLite and PostgreSQL alike.

Free text is kept as JSON in ASCII, because PostgreSQL's text refuses NUL and neither database takes lone surrogates; numbers per
token are packed little-endian, so that the learner reads a candidate without parsing.
"""

from sqlalchemy import BigInteger, Float, ForeignKey, Index, Integer, LargeBinary, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The root of the tables."""


class InteractionRow(Base):
    """One answered request, but for its candidates."""

    __tablename__ = "interactions"

    id: Mapped[str] = mapped_column(String(200), primary_key=True)
    position: Mapped[int] = mapped_column(BigInteger, unique=True)
    created_at: Mapped[float] = mapped_column(Float(53))
    stored_at: Mapped[float] = mapped_column(Float(53))
    user: Mapped[str | None] = mapped_column(String(200), index=True)
    conversation_id: Mapped[str | None] = mapped_column(String(200))
    turn: Mapped[int] = mapped_column(Integer)
    policy_version: Mapped[int] = mapped_column(BigInteger)
    reward_version: Mapped[int] = mapped_column(BigInteger)
    prompt_version: Mapped[str] = mapped_column(String(200))
    seed: Mapped[int | None] = mapped_column(BigInteger)
    num_candidates: Mapped[int] = mapped_column(Integer)
    shown: Mapped[str] = mapped_column(Text)
    """JSON list of candidate indexes."""
    propensities: Mapped[str] = mapped_column(Text)
    """JSON list."""
    sampling: Mapped[str] = mapped_column(Text)
    """JSON object of `attune.types.Sampling`."""
    messages: Mapped[str] = mapped_column(Text)
    """JSON list."""
    prompt_token_ids: Mapped[bytes] = mapped_column(LargeBinary)
    """int32."""


class CandidateRow(Base):
    """One sampled completion of an interaction."""

    __tablename__ = "candidates"

    interaction_id: Mapped[str] = mapped_column(ForeignKey("interactions.id", ondelete="CASCADE"), primary_key=True)
    index: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    text: Mapped[str] = mapped_column(Text)
    """JSON string."""
    finish_reason: Mapped[str] = mapped_column(String(50))
    scores: Mapped[str] = mapped_column(Text)
    """JSON object."""
    token_ids: Mapped[bytes] = mapped_column(LargeBinary)
    """int32."""
    logprobs: Mapped[bytes] = mapped_column(LargeBinary)
    """float32, NaN where the sampler gave none."""
    ref_logprobs: Mapped[bytes | None] = mapped_column(LargeBinary)
    """float32."""
    features: Mapped[bytes | None] = mapped_column(LargeBinary)
    """float16, as `attune.types.Candidate.features`."""
    sharp_logprobs: Mapped[bytes | None] = mapped_column(LargeBinary)
    """float32; none in answers from before this column."""


class FeedbackRow(Base):
    """The latest state of one vote."""

    __tablename__ = "feedback"

    id: Mapped[str] = mapped_column(String(200), primary_key=True)
    position: Mapped[int | None] = mapped_column(BigInteger, unique=True)
    """None while its interaction is not there (an orphan); anew with every change."""
    event_id: Mapped[str] = mapped_column(String(200))
    interaction_id: Mapped[str] = mapped_column(String(200), index=True)
    kind: Mapped[str] = mapped_column(String(20))
    value: Mapped[str] = mapped_column(Text)
    """JSON."""
    choice: Mapped[int] = mapped_column(Integer)
    aspect: Mapped[str | None] = mapped_column(String(100))
    user: Mapped[str | None] = mapped_column(String(200), index=True)
    received_at: Mapped[float] = mapped_column(Float(53))
    stored_at: Mapped[float] = mapped_column(Float(53))
    in_force: Mapped[bool] = mapped_column()

    __table_args__ = (Index("ix_feedback_state", "in_force", "position"),)


class WithdrawalRow(Base):
    """The latest withdrawal of one vote; it may come before the vote."""

    __tablename__ = "withdrawals"

    feedback_id: Mapped[str] = mapped_column(String(200), primary_key=True)
    event_id: Mapped[str] = mapped_column(String(200))
    received_at: Mapped[float] = mapped_column(Float(53))


class EventRow(Base):
    """Every vote and withdrawal that was ever taken in: what comes a second time is dropped."""

    __tablename__ = "events"

    event_id: Mapped[str] = mapped_column(String(200), primary_key=True)
    feedback_id: Mapped[str] = mapped_column(String(200), index=True)
    stored_at: Mapped[float] = mapped_column(Float(53))


class OffsetRow(Base):
    """Where the consumer stands in one partition of the log; moved by compare-and-set in the transaction that writes the rows."""

    __tablename__ = "offsets"

    topic: Mapped[str] = mapped_column(String(300), primary_key=True)
    partition: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    next_offset: Mapped[int] = mapped_column(BigInteger)


class CounterRow(Base):
    """One row, locked by every writer first: so positions are given out in commit order and never twice."""

    __tablename__ = "counter"

    name: Mapped[str] = mapped_column(String(20), primary_key=True)
    value: Mapped[int] = mapped_column(BigInteger)


class DeadLetterRow(Base):
    """One event that could not be taken in, as it was read."""

    __tablename__ = "dead_letters"

    topic: Mapped[str] = mapped_column(String(300), primary_key=True)
    partition: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    offset: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    reason: Mapped[str] = mapped_column(Text)
    attempts: Mapped[int] = mapped_column(Integer)
    key: Mapped[str] = mapped_column(Text)
    """JSON string."""
    headers: Mapped[str] = mapped_column(Text)
    """JSON object."""
    body: Mapped[bytes] = mapped_column(LargeBinary)
    stored_at: Mapped[float] = mapped_column(Float(53))
