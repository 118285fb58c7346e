"""Run the migrations on the connection that `feedback.database` hands over; there is no alembic.ini and no offline mode."""

from alembic import context

from feedback.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite cannot alter most of a table in place
)
with context.begin_transaction():
    context.run_migrations()
