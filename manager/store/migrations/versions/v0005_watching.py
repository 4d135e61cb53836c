"""What those who watch need: freeze times as numbers, jobs by their end, and which Manager workers live."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

ENDED = sa.text("finished_at IS NOT NULL")


def upgrade() -> None:
    """Make the table of workers and the index; put the freeze times of known snapshots beside their receipts."""
    op.create_table(
        "manager_workers",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("pid", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_manager_workers"),
    )
    op.create_index("ix_jobs_finished_at", "jobs", ["finished_at"], sqlite_where=ENDED, postgresql_where=ENDED)
    op.add_column("snapshots", sa.Column("freeze_ms", sa.Double()))
    op.add_column("snapshots", sa.Column("held_ms", sa.Double()))
    _measure_old_ones()


def _measure_old_ones() -> None:
    snapshots = sa.table("snapshots", *(sa.column(name) for name in ("id", "receipt_json", "freeze_ms", "held_ms")))
    connection = op.get_bind()
    found = connection.execute(sa.select(snapshots.c.id, snapshots.c.receipt_json)).all()
    receipts = [(row.id, json.loads(row.receipt_json)) for row in found]
    times = [
        {"snapshot": id_, "freeze": receipt["freeze_ms"], "held": receipt["held_ms"]}
        for id_, receipt in receipts
        if receipt.get("freeze_confirmed")
    ]
    if times:
        measured: dict[str, sa.BindParameter[float]] = {
            "freeze_ms": sa.bindparam("freeze"),
            "held_ms": sa.bindparam("held"),
        }
        connection.execute(snapshots.update().where(snapshots.c.id == sa.bindparam("snapshot")).values(measured), times)
