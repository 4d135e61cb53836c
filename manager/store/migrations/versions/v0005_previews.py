"""Machines that show a snapshot, and their way back."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table of previews."""
    op.create_table(
        "previews",
        sa.Column("disk_id", sa.String(36), nullable=False),
        sa.Column("vm_id", sa.String(36), nullable=False),
        sa.Column("snapshot_id", sa.String(36), nullable=False),
        sa.Column("target", sa.String(16), nullable=False),
        sa.Column("kept_volume_id", sa.String(36), nullable=False),
        sa.Column("volume_id", sa.String(36), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("disk_id", name="pk_previews"),
        sa.ForeignKeyConstraint(["disk_id"], ["disks.id"], name="fk_previews_disk_id"),
        sa.ForeignKeyConstraint(["vm_id"], ["vms.id"], name="fk_previews_vm_id"),
        sa.ForeignKeyConstraint(["snapshot_id"], ["snapshots.id"], name="fk_previews_snapshot_id"),
    )
    op.create_index("ix_previews_vm_id", "previews", ["vm_id"])
