"""Questions to hosts, and the room that an SPM wants to be left."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table of questions; let pools carry their SPM's limit."""
    op.create_table(
        "checks",
        sa.Column("step_id", sa.String(36), nullable=False),
        sa.Column("queue", sa.String(80), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("said_at", sa.DateTime(timezone=True)),
        sa.Column("answer_json", sa.Text(), nullable=False, server_default=sa.text("''")),
        sa.PrimaryKeyConstraint("step_id", name="pk_checks"),
    )
    op.create_index("ix_checks_expires_at", "checks", ["expires_at"])
    op.add_column("pools", sa.Column("min_free_bytes", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
