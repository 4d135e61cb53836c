"""Locks on machines that clone and backup scripts hold."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Move the tables from 0001 to 0002."""
    op.create_table(
        "vm_locks",
        sa.Column("vm_id", sa.String(length=36), nullable=False),
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.String(length=255), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["vm_id"], ["vms.id"], name="fk_vm_locks_vm_id"),
        sa.PrimaryKeyConstraint("vm_id", name="pk_vm_locks"),
    )
