"""Limits on how many jobs are at work at once, and what each unfinished job is counted for."""

import json
from collections.abc import Iterator

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

QUEUED = sa.text("queued_at IS NOT NULL")


def upgrade() -> None:
    """Make the tables; the jobs that are at work are counted from now on."""
    op.add_column("jobs", sa.Column("queued_at", sa.DateTime(timezone=True)))
    op.create_index("ix_jobs_queued_at", "jobs", ["queued_at"], sqlite_where=QUEUED, postgresql_where=QUEUED)
    op.create_table(
        "job_limits",
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("max_jobs", sa.Integer(), nullable=False),
        sa.Column("set_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("scope", "name", name="pk_job_limits"),
    )
    loads = op.create_table(
        "job_loads",
        sa.Column("job_id", sa.String(36), sa.ForeignKey("jobs.id", name="fk_job_loads_job_id"), nullable=False),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "scope", "name", name="pk_job_loads"),
    )
    rows = list(_at_work(op.get_bind()))
    if rows:
        op.bulk_insert(loads, rows)


def _at_work(connection: sa.Connection) -> Iterator[dict[str, str]]:
    """Yield what the unfinished jobs of older versions are counted for, as far as their states say it."""
    for job, text in connection.execute(sa.text("SELECT id, state_json FROM jobs WHERE finished_at IS NULL")):
        try:
            state = json.loads(text)
        except ValueError:
            continue  # such a job stands still, and says so in the log
        plan = state.get("plan", {}) if isinstance(state, dict) else {}
        found = {("host", state.get("host")), ("pool", plan.get("pool"))} if plan else set()
        for disk in [*plan.get("disks", ()), *plan.get("moves", ())]:
            found.add(("storage_domain", disk.get("new", {}).get("storage_domain_id")))
        yield from ({"job_id": job, "scope": scope, "name": name} for scope, name in sorted(found, key=str) if name)
