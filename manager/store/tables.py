"""Every table of the Manager. The migrations must arrive at exactly these (a test compares them).

Times are UTC; sizes are bytes; ids are UUIDs in text form, hosts and pools are names. JSON columns hold what is only
ever read whole. Locks are taken in the order jobs, vms, disks, volumes, snapshots, so that no two writers wait for
each other in a circle; `vm_locks` and `previews` are written under the lock on their row of `vms`.
"""

from sqlalchemy import BigInteger, Boolean, Column, Double, ForeignKey, Index, Integer, String, Table, Text, text

from manager.store.columns import NONE as _NONE
from manager.store.columns import PlainText, UtcTime
from manager.store.columns import metadata as metadata

# ---- inventory: who reports, and what was reported ---------------------------------------------------------------

incarnations = Table(
    "incarnations",
    metadata,
    Column("sender", String(80), primary_key=True),
    Column("incarnation", PlainText, primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("observed_at", UtcTime, nullable=False),
    Column("seen_at", UtcTime, nullable=False),
)

pools = Table(
    "pools",
    metadata,
    Column("id", String(63), primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("seen_at", UtcTime, nullable=False),
    Column("min_free_bytes", BigInteger, nullable=False, server_default=text("0")),
)

storage_domains = Table(
    "storage_domains",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", PlainText, nullable=False),
    Column("pool_id", String(63), nullable=False),
    Column("root", PlainText, nullable=False),
    Column("free_bytes", BigInteger, nullable=False),
    Column("total_bytes", BigInteger, nullable=False),
    Column("problem", PlainText, nullable=False),
    Column("seen_at", UtcTime, nullable=False),
)

hosts = Table(
    "hosts",
    metadata,
    Column("id", String(63), primary_key=True),
    Column("boot_id", PlainText, nullable=False),
    Column("libvirt_up", Boolean, nullable=False),
    Column("problem", PlainText, nullable=False),
    Column("frozen_json", Text, nullable=False),
    Column("mounts_json", Text, nullable=False),
    Column("observed_at", UtcTime, nullable=False),
    Column("seen_at", UtcTime, nullable=False),
    # When somebody said that it never comes back, and the public keys that are refused since.
    Column("removed_at", UtcTime),
    Column("revoked_keys", Text, nullable=False, server_default=_NONE),
)

# What an operator says of a host; one that was set up by hand has a row once it was drained.
memberships = Table(
    "memberships",
    metadata,
    Column("host_id", String(63), primary_key=True),
    Column("added_at", UtcTime),
    Column("drained_at", UtcTime),
)

vms = Table(
    "vms",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", PlainText, nullable=False, index=True),
    # The highest attempt of any command about this vm (P6), and that of the last command to a host, with the host.
    Column("attempt", BigInteger, nullable=False, server_default=text("0")),
    Column("host_attempt", BigInteger, nullable=False, server_default=text("0")),
    Column("attempt_host", String(63)),
    Column("off_chain", PlainText, nullable=False, server_default=_NONE),
    Column("created_at", UtcTime, nullable=False),
)

vm_locks = Table(
    "vm_locks",
    metadata,
    Column("vm_id", String(36), ForeignKey("vms.id"), primary_key=True),
    Column("id", String(36), nullable=False),
    Column("reason", PlainText, nullable=False),
    Column("idempotency_key", String(255)),
    Column("created_at", UtcTime, nullable=False),
    # None: until somebody unlocks. An expired row is as none, and is replaced by the next lock.
    Column("expires_at", UtcTime),
)

vm_hosts = Table(
    "vm_hosts",
    metadata,
    Column("vm_id", String(36), ForeignKey("vms.id"), primary_key=True),
    Column("host_id", String(63), primary_key=True, index=True),
    Column("state", String(20), nullable=False),
    Column("rank", Integer, nullable=False),
    Column("report_json", Text, nullable=False),
    Column("seen_at", UtcTime, nullable=False),
)

disks = Table(
    "disks",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("vm_id", String(36), ForeignKey("vms.id"), nullable=False, index=True),
    Column("target", String(16), nullable=False),
    Column("leaf_volume_id", String(36), nullable=False),
)

volumes = Table(
    "volumes",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("disk_id", String(36), nullable=False, index=True),
    Column("storage_domain_id", String(36), nullable=False),
    Column("path", PlainText, nullable=False),
    Column("format", String(8), nullable=False),
    Column("parent_id", String(36)),
    Column("size_bytes", BigInteger),
    Column("immutable", Boolean, nullable=False),
    Column("origin", String(8), nullable=False),
    Column("state", String(8), nullable=False),
)

# ---- snapshots ---------------------------------------------------------------------------------------------------

snapshots = Table(
    "snapshots",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("vm_id", String(36), ForeignKey("vms.id"), nullable=False),
    Column("name", PlainText, nullable=False, index=True),
    Column("description", PlainText, nullable=False),
    Column("state", String(16), nullable=False),
    Column("consistency", String(16)),
    Column("reason", PlainText, nullable=False, server_default=_NONE),
    Column("excluded_json", Text, nullable=False),
    Column("partial", Boolean, nullable=False),
    Column("receipt_json", Text, nullable=False, server_default=text("'{}'")),
    # How long the guest's agent took to freeze, and how long the guest then stood still; None if it was not frozen.
    Column("freeze_ms", Double()),
    Column("held_ms", Double()),
    Column("live_xml", PlainText, nullable=False, server_default=_NONE),
    Column("persistent_xml", PlainText, nullable=False, server_default=_NONE),
    Column("created_at", UtcTime, nullable=False),
    Column("taken_at", UtcTime),
)
Index(
    "uq_snapshots_vm_name",
    snapshots.c.vm_id,
    snapshots.c.name,
    unique=True,
    sqlite_where=text("state <> 'dropped'"),
    postgresql_where=text("state <> 'dropped'"),
)

snapshot_disks = Table(
    "snapshot_disks",
    metadata,
    Column("snapshot_id", String(36), ForeignKey("snapshots.id"), primary_key=True),
    Column("disk_id", String(36), primary_key=True),
    Column("target", String(16), nullable=False),
    Column("volume_id", String(36), nullable=False),
    Column("new_volume_id", String(36), nullable=False, index=True),
    Column("size_bytes", BigInteger, nullable=False, server_default=text("0")),
)

# A disk of a machine that shows a snapshot: its leaf on record is the preview's, and this is the way back.
previews = Table(
    "previews",
    metadata,
    Column("disk_id", String(36), ForeignKey("disks.id"), primary_key=True),
    Column("vm_id", String(36), ForeignKey("vms.id"), nullable=False, index=True),
    Column("snapshot_id", String(36), ForeignKey("snapshots.id"), nullable=False),
    Column("target", String(16), nullable=False),
    Column("kept_volume_id", String(36), nullable=False),
    Column("volume_id", String(36), nullable=False),
    Column("created_at", UtcTime, nullable=False),
)

# ---- jobs and their messages -------------------------------------------------------------------------------------

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("kind", String(20), nullable=False),
    Column("vm_id", String(36), ForeignKey("vms.id"), nullable=False, index=True),
    Column("snapshot_id", String(36)),
    Column("state", String(24), nullable=False),
    Column("state_json", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("wake_at", UtcTime),
    Column("error_code", PlainText, nullable=False, server_default=_NONE),
    Column("error_message", PlainText, nullable=False, server_default=_NONE),
    Column("error_hint", PlainText, nullable=False, server_default=_NONE),
    Column("idempotency_key", String(255), unique=True),
    Column("request_hash", String(64), nullable=False),
    Column("created_at", UtcTime, nullable=False, index=True),
    Column("noted_at", UtcTime, nullable=False),
    # Since when it waits for its turn, before its first step; None: it does not.
    Column("queued_at", UtcTime),
    Column("finished_at", UtcTime),
)
Index(
    "ix_jobs_queued_at",
    jobs.c.queued_at,
    sqlite_where=text("queued_at IS NOT NULL"),
    postgresql_where=text("queued_at IS NOT NULL"),
)
Index(
    "uq_jobs_unfinished_vm",
    jobs.c.vm_id,
    unique=True,
    sqlite_where=text("finished_at IS NULL"),
    postgresql_where=text("finished_at IS NULL"),
)
Index(
    "ix_jobs_finished_at",
    jobs.c.finished_at,
    sqlite_where=text("finished_at IS NOT NULL"),
    postgresql_where=text("finished_at IS NOT NULL"),
)
Index(
    "ix_jobs_wake_at",
    jobs.c.wake_at,
    sqlite_where=text("wake_at IS NOT NULL"),
    postgresql_where=text("wake_at IS NOT NULL"),
)

# How many jobs may be at work at once on one host, storage domain or pool; name '': on each that has no row of its own.
job_limits = Table(
    "job_limits",
    metadata,
    Column("scope", String(16), primary_key=True),
    Column("name", String(63), primary_key=True),
    Column("max_jobs", Integer, nullable=False),
    Column("set_at", UtcTime, nullable=False),
)

# What an unfinished job is counted for: its host, its pool, and the ids of its storage domains.
job_loads = Table(
    "job_loads",
    metadata,
    Column("job_id", String(36), ForeignKey("jobs.id"), primary_key=True),
    Column("scope", String(16), primary_key=True),
    Column("name", String(63), primary_key=True),
)

timeline = Table(
    "timeline",
    metadata,
    Column("job_id", String(36), ForeignKey("jobs.id"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("at", UtcTime, nullable=False),
    Column("step", String(24), nullable=False),
    Column("detail", PlainText, nullable=False),
    Column("ms", Double(), nullable=False),
)

outbox = Table(
    "outbox",
    metadata,
    Column("step_id", String(36), primary_key=True),
    Column("job_id", String(36), ForeignKey("jobs.id"), nullable=False, index=True),
    Column("vm_id", String(36), nullable=False),
    Column("queue", String(80), nullable=False),
    Column("task", String(40), nullable=False),
    Column("attempt", BigInteger, nullable=False),
    Column("step", String(24), nullable=False),
    Column("quiesce", Boolean),
    Column("readable", PlainText, nullable=False),
    Column("sender", String(80), nullable=False),
    Column("body", Text, nullable=False),
    Column("signature", Text, nullable=False),
    Column("deadline", UtcTime, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("deliveries", Integer, nullable=False),
    Column("next_send_at", UtcTime, nullable=False),
    Column("publish_error", PlainText, nullable=False, server_default=_NONE),
    Column("closed_at", UtcTime),
    Column("outcome", PlainText, nullable=False, server_default=_NONE),
    Column("reason", PlainText, nullable=False, server_default=_NONE),
    Column("answer_json", Text, nullable=False, server_default=_NONE),
)
Index(
    "uq_outbox_open_job",
    outbox.c.job_id,
    unique=True,
    sqlite_where=text("closed_at IS NULL"),
    postgresql_where=text("closed_at IS NULL"),
)
Index(
    "ix_outbox_open_next_send_at",
    outbox.c.next_send_at,
    sqlite_where=text("closed_at IS NULL"),
    postgresql_where=text("closed_at IS NULL"),
)

# ---- questions to hosts that no job stands behind ----------------------------------------------------------------

checks = Table(
    "checks",
    metadata,
    Column("step_id", String(36), primary_key=True),
    Column("queue", String(80), nullable=False),
    Column("expires_at", UtcTime, nullable=False, index=True),
    Column("said_at", UtcTime),
    Column("answer_json", Text, nullable=False, server_default=_NONE),
)

# ---- who is at work ----------------------------------------------------------------------------------------------

manager_workers = Table(
    "manager_workers",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("node", PlainText, nullable=False),
    Column("pid", BigInteger, nullable=False),
    Column("started_at", UtcTime, nullable=False),
    Column("seen_at", UtcTime, nullable=False),
)

# ---- who may ask, and who asked for what -------------------------------------------------------------------------

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(36), primary_key=True),
    # Never used twice, so that the audit log stays readable.
    Column("name", String(255), nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("created_by", PlainText, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime),
    Column("revoked_at", UtcTime),
)

audit = Table(
    "audit",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("at", UtcTime, nullable=False, index=True),
    Column("token", PlainText, nullable=False),
    Column("role", String(16), nullable=False),
    Column("method", String(16), nullable=False),
    Column("path", PlainText, nullable=False),
    # None: the process ended before it had answered.
    Column("status", Integer),
    Column("location", PlainText, nullable=False, server_default=_NONE),
)
