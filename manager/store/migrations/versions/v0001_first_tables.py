"""The first tables. Written out, not taken from tables.py: a version must not change when the tables do."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table."""
    for create in (
        _hosts,
        _incarnations,
        _pools,
        _storage_domains,
        _vms,
        _vms_indexes,
        _volumes,
        _volumes_indexes,
        _disks,
        _disks_indexes,
        _jobs,
        _jobs_indexes,
        _snapshots,
        _snapshots_indexes,
        _vm_hosts,
        _vm_hosts_indexes,
        _outbox,
        _outbox_indexes,
        _snapshot_disks,
        _snapshot_disks_indexes,
        _timeline,
    ):
        create()


def _hosts() -> None:
    op.create_table(
        "hosts",
        sa.Column("id", sa.String(length=63), nullable=False),
        sa.Column("boot_id", sa.Text(), nullable=False),
        sa.Column("libvirt_up", sa.Boolean(), nullable=False),
        sa.Column("problem", sa.Text(), nullable=False),
        sa.Column("frozen_json", sa.Text(), nullable=False),
        sa.Column("mounts_json", sa.Text(), nullable=False),
        sa.Column("observed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_hosts"),
    )


def _incarnations() -> None:
    op.create_table(
        "incarnations",
        sa.Column("sender", sa.String(length=80), nullable=False),
        sa.Column("incarnation", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("observed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("sender", "incarnation", name="pk_incarnations"),
    )


def _pools() -> None:
    op.create_table(
        "pools",
        sa.Column("id", sa.String(length=63), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_pools"),
    )


def _storage_domains() -> None:
    op.create_table(
        "storage_domains",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("pool_id", sa.String(length=63), nullable=False),
        sa.Column("root", sa.Text(), nullable=False),
        sa.Column("free_bytes", sa.BigInteger(), nullable=False),
        sa.Column("total_bytes", sa.BigInteger(), nullable=False),
        sa.Column("problem", sa.Text(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_storage_domains"),
    )


def _vms() -> None:
    op.create_table(
        "vms",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("host_attempt", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("attempt_host", sa.String(length=63), nullable=True),
        sa.Column("off_chain", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_vms"),
    )


def _vms_indexes() -> None:
    op.create_index("ix_vms_name", "vms", ["name"], unique=False)


def _volumes() -> None:
    op.create_table(
        "volumes",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("disk_id", sa.String(length=36), nullable=False),
        sa.Column("storage_domain_id", sa.String(length=36), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("format", sa.String(length=8), nullable=False),
        sa.Column("parent_id", sa.String(length=36), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("immutable", sa.Boolean(), nullable=False),
        sa.Column("origin", sa.String(length=8), nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_volumes"),
    )


def _volumes_indexes() -> None:
    op.create_index("ix_volumes_disk_id", "volumes", ["disk_id"], unique=False)


def _disks() -> None:
    op.create_table(
        "disks",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("vm_id", sa.String(length=36), nullable=False),
        sa.Column("target", sa.String(length=16), nullable=False),
        sa.Column("leaf_volume_id", sa.String(length=36), nullable=False),
        sa.ForeignKeyConstraint(["vm_id"], ["vms.id"], name="fk_disks_vm_id"),
        sa.PrimaryKeyConstraint("id", name="pk_disks"),
    )


def _disks_indexes() -> None:
    op.create_index("ix_disks_vm_id", "disks", ["vm_id"], unique=False)


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("vm_id", sa.String(length=36), nullable=False),
        sa.Column("snapshot_id", sa.String(length=36), nullable=True),
        sa.Column("state", sa.String(length=24), nullable=False),
        sa.Column("state_json", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("wake_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error_code", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("error_message", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("error_hint", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("idempotency_key", sa.String(length=255), nullable=True),
        sa.Column("request_hash", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("noted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["vm_id"], ["vms.id"], name="fk_jobs_vm_id"),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.UniqueConstraint("idempotency_key", name="uq_jobs_idempotency_key"),
    )


def _jobs_indexes() -> None:
    op.create_index("ix_jobs_created_at", "jobs", ["created_at"], unique=False)
    op.create_index("ix_jobs_vm_id", "jobs", ["vm_id"], unique=False)
    op.create_index(
        "ix_jobs_wake_at",
        "jobs",
        ["wake_at"],
        unique=False,
        sqlite_where=sa.text("wake_at IS NOT NULL"),
        postgresql_where=sa.text("wake_at IS NOT NULL"),
    )
    op.create_index(
        "uq_jobs_unfinished_vm",
        "jobs",
        ["vm_id"],
        unique=True,
        sqlite_where=sa.text("finished_at IS NULL"),
        postgresql_where=sa.text("finished_at IS NULL"),
    )


def _snapshots() -> None:
    op.create_table(
        "snapshots",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("vm_id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("consistency", sa.String(length=16), nullable=True),
        sa.Column("reason", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("excluded_json", sa.Text(), nullable=False),
        sa.Column("partial", sa.Boolean(), nullable=False),
        sa.Column("receipt_json", sa.Text(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("live_xml", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("persistent_xml", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("taken_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["vm_id"], ["vms.id"], name="fk_snapshots_vm_id"),
        sa.PrimaryKeyConstraint("id", name="pk_snapshots"),
    )


def _snapshots_indexes() -> None:
    op.create_index("ix_snapshots_name", "snapshots", ["name"], unique=False)
    op.create_index(
        "uq_snapshots_vm_name",
        "snapshots",
        ["vm_id", "name"],
        unique=True,
        sqlite_where=sa.text("state <> 'dropped'"),
        postgresql_where=sa.text("state <> 'dropped'"),
    )


def _vm_hosts() -> None:
    op.create_table(
        "vm_hosts",
        sa.Column("vm_id", sa.String(length=36), nullable=False),
        sa.Column("host_id", sa.String(length=63), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("report_json", sa.Text(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["vm_id"], ["vms.id"], name="fk_vm_hosts_vm_id"),
        sa.PrimaryKeyConstraint("vm_id", "host_id", name="pk_vm_hosts"),
    )


def _vm_hosts_indexes() -> None:
    op.create_index("ix_vm_hosts_host_id", "vm_hosts", ["host_id"], unique=False)


def _outbox() -> None:
    op.create_table(
        "outbox",
        sa.Column("step_id", sa.String(length=36), nullable=False),
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("vm_id", sa.String(length=36), nullable=False),
        sa.Column("queue", sa.String(length=80), nullable=False),
        sa.Column("task", sa.String(length=40), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.String(length=24), nullable=False),
        sa.Column("quiesce", sa.Boolean(), nullable=True),
        sa.Column("readable", sa.Text(), nullable=False),
        sa.Column("sender", sa.String(length=80), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("signature", sa.Text(), nullable=False),
        sa.Column("deadline", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deliveries", sa.Integer(), nullable=False),
        sa.Column("next_send_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("publish_error", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("reason", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("answer_json", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_outbox_job_id"),
        sa.PrimaryKeyConstraint("step_id", name="pk_outbox"),
    )


def _outbox_indexes() -> None:
    op.create_index("ix_outbox_job_id", "outbox", ["job_id"], unique=False)
    op.create_index(
        "ix_outbox_open_next_send_at",
        "outbox",
        ["next_send_at"],
        unique=False,
        sqlite_where=sa.text("closed_at IS NULL"),
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.create_index(
        "uq_outbox_open_job",
        "outbox",
        ["job_id"],
        unique=True,
        sqlite_where=sa.text("closed_at IS NULL"),
        postgresql_where=sa.text("closed_at IS NULL"),
    )


def _snapshot_disks() -> None:
    op.create_table(
        "snapshot_disks",
        sa.Column("snapshot_id", sa.String(length=36), nullable=False),
        sa.Column("disk_id", sa.String(length=36), nullable=False),
        sa.Column("target", sa.String(length=16), nullable=False),
        sa.Column("volume_id", sa.String(length=36), nullable=False),
        sa.Column("new_volume_id", sa.String(length=36), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.ForeignKeyConstraint(["snapshot_id"], ["snapshots.id"], name="fk_snapshot_disks_snapshot_id"),
        sa.PrimaryKeyConstraint("snapshot_id", "disk_id", name="pk_snapshot_disks"),
    )


def _snapshot_disks_indexes() -> None:
    op.create_index("ix_snapshot_disks_new_volume_id", "snapshot_disks", ["new_volume_id"], unique=False)


def _timeline() -> None:
    op.create_table(
        "timeline",
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("step", sa.String(length=24), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("ms", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_timeline_job_id"),
        sa.PrimaryKeyConstraint("job_id", "version", name="pk_timeline"),
    )
