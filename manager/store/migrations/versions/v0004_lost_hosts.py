"""Hosts that were removed as lost."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Let a host be removed, and remember the keys that it had."""
    op.add_column("hosts", sa.Column("removed_at", sa.DateTime(timezone=True)))
    op.add_column("hosts", sa.Column("revoked_keys", sa.Text(), nullable=False, server_default=sa.text("''")))
