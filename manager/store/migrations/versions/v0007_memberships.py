"""Hosts that were added by name, and those that take no new work."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table of memberships."""
    op.create_table(
        "memberships",
        sa.Column("host_id", sa.String(63), nullable=False),
        sa.Column("added_at", sa.DateTime(timezone=True)),
        sa.Column("drained_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("host_id", name="pk_memberships"),
    )
