"""Freeze times as numbers, jobs by their end, which Manager workers live; tokens with roles, and the audit log."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
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
    _make_access()


def _make_access() -> None:
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
        sa.Column("revoked_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        sa.UniqueConstraint("name", name="uq_tokens_name"),
        sa.UniqueConstraint("digest", name="uq_tokens_digest"),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("method", sa.String(16), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("status", sa.Integer()),
        sa.Column("location", sa.Text(), nullable=False, server_default=sa.text("''")),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_index("ix_audit_at", "audit", ["at"])


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
