"""What the base would say at a lower temperature, for the price of drift. Answers from before have none, and are priced as they were."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("candidates", sa.Column("sharp_logprobs", sa.LargeBinary()))
