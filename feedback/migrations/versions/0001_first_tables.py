"""The first tables. Migrations only go forward: to go back, restore the copy of the database made before the upgrade."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _interactions()
    _votes()
    _consumer()


def _interactions() -> None:
    op.create_table(
        "interactions",
        sa.Column("id", sa.String(200), primary_key=True),
        sa.Column("position", sa.BigInteger(), nullable=False, unique=True),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.Column("stored_at", sa.Float(53), nullable=False),
        sa.Column("user", sa.String(200)),
        sa.Column("conversation_id", sa.String(200)),
        sa.Column("turn", sa.Integer(), nullable=False),
        sa.Column("policy_version", sa.BigInteger(), nullable=False),
        sa.Column("reward_version", sa.BigInteger(), nullable=False),
        sa.Column("prompt_version", sa.String(200), nullable=False),
        sa.Column("seed", sa.BigInteger()),
        sa.Column("num_candidates", sa.Integer(), nullable=False),
        sa.Column("shown", sa.Text(), nullable=False),
        sa.Column("propensities", sa.Text(), nullable=False),
        sa.Column("sampling", sa.Text(), nullable=False),
        sa.Column("messages", sa.Text(), nullable=False),
        sa.Column("prompt_token_ids", sa.LargeBinary(), nullable=False),
    )
    op.create_index("ix_interactions_user", "interactions", ["user"])
    op.create_table(
        "candidates",
        sa.Column("interaction_id", sa.String(200), sa.ForeignKey("interactions.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("index", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("finish_reason", sa.String(50), nullable=False),
        sa.Column("scores", sa.Text(), nullable=False),
        sa.Column("token_ids", sa.LargeBinary(), nullable=False),
        sa.Column("logprobs", sa.LargeBinary(), nullable=False),
        sa.Column("ref_logprobs", sa.LargeBinary()),
        sa.Column("features", sa.LargeBinary()),
    )


def _votes() -> None:
    op.create_table(
        "feedback",
        sa.Column("id", sa.String(200), primary_key=True),
        sa.Column("position", sa.BigInteger(), unique=True),
        sa.Column("event_id", sa.String(200), nullable=False),
        sa.Column("interaction_id", sa.String(200), nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("choice", sa.Integer(), nullable=False),
        sa.Column("aspect", sa.String(100)),
        sa.Column("user", sa.String(200)),
        sa.Column("received_at", sa.Float(53), nullable=False),
        sa.Column("stored_at", sa.Float(53), nullable=False),
        sa.Column("in_force", sa.Boolean(), nullable=False),
    )
    op.create_index("ix_feedback_interaction_id", "feedback", ["interaction_id"])
    op.create_index("ix_feedback_user", "feedback", ["user"])
    op.create_index("ix_feedback_state", "feedback", ["in_force", "position"])
    op.create_table(
        "withdrawals",
        sa.Column("feedback_id", sa.String(200), primary_key=True),
        sa.Column("event_id", sa.String(200), nullable=False),
        sa.Column("received_at", sa.Float(53), nullable=False),
    )
    op.create_table(
        "events",
        sa.Column("event_id", sa.String(200), primary_key=True),
        sa.Column("feedback_id", sa.String(200), nullable=False),
        sa.Column("stored_at", sa.Float(53), nullable=False),
    )
    op.create_index("ix_events_feedback_id", "events", ["feedback_id"])


def _consumer() -> None:
    op.create_table(
        "offsets",
        sa.Column("topic", sa.String(300), primary_key=True),
        sa.Column("partition", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("next_offset", sa.BigInteger(), nullable=False),
    )
    counter = op.create_table(
        "counter",
        sa.Column("name", sa.String(20), primary_key=True),
        sa.Column("value", sa.BigInteger(), nullable=False),
    )
    op.bulk_insert(counter, [{"name": "position", "value": 0}])
    op.create_table(
        "dead_letters",
        sa.Column("topic", sa.String(300), primary_key=True),
        sa.Column("partition", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("offset", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("headers", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("stored_at", sa.Float(53), nullable=False),
    )
