"""The error codes that are about a machine: its state, its disks, its guest, its pivot. Pure."""

from common.error_code import ErrorCode

VM_CODES: dict[str, ErrorCode] = {
    # machines
    "vm_not_found": ErrorCode(
        "refused",
        404,
        "No host reports a machine of that id or name.",
        "See `livesnap vm list`; a machine appears with its host's next report.",
    ),
    "vm_ambiguous": ErrorCode(
        "refused", 409, "Several machines have that name.", "Use the machine's id; `livesnap vm list` shows it."
    ),
    "vm_ambiguous_host": ErrorCode(
        "refused", 409, "The machine is stopped and defined on several hosts.", "Undefine it on all hosts but one."
    ),
    "vm_busy": ErrorCode(
        "refused",
        409,
        "Another job, a block job or somebody's lock holds the machine.",
        "Wait for it; the message names the holder. `livesnap vm unlock VM` frees a lock that nobody needs any more.",
    ),
    "vm_not_locked": ErrorCode(
        "refused", 409, "The machine is not locked.", "Nothing to do; `livesnap vm show VM` shows who holds a machine."
    ),
    "vm_running": ErrorCode(
        "refused",
        409,
        "The machine is not shut off, and only the disks of a stopped machine can go back to a snapshot.",
        "Shut it down (`virsh shutdown`), then ask again.",
    ),
    "vm_previewed": ErrorCode(
        "refused",
        409,
        "The machine shows a snapshot for trial.",
        "Shut it down, then `livesnap snapshot commit VM` keeps it so and `livesnap snapshot undo VM` ends it.",
    ),
    "vm_not_previewed": ErrorCode(
        "refused", 409, "The machine shows no snapshot for trial.", "`livesnap snapshot preview SNAPSHOT` begins that."
    ),
    "vm_migrating": ErrorCode("job", 409, "The machine is being migrated.", "Ask again when the migration is over."),
    "vm_paused_io_error": ErrorCode(
        "job",
        409,
        "The machine is paused by an I/O error.",
        "Give its storage room or repair it, then resume the machine (`virsh resume`).",
    ),
    "vm_pmsuspended": ErrorCode(
        "job",
        409,
        "The machine was suspended by its guest, and libvirt switches no volume of such a machine.",
        "Wake it up (`virsh dompmwakeup`), then ask again; it may be paused (`virsh suspend`).",
    ),
    "vm_saving": ErrorCode(
        "job",
        409,
        "The machine is being saved to a file.",
        "Ask again when it is saved (a managed save image must be started or removed first), or `virsh domjobabort`.",
    ),
    "vm_dumping": ErrorCode(
        "job",
        409,
        "The machine's memory is being dumped.",
        "Ask again when the dump is complete, or end it with `virsh domjobabort`.",
    ),
    "vm_crashed": ErrorCode(
        "job",
        409,
        "The machine has crashed and was kept for examination.",
        "Dump what you need of it, then `virsh destroy` it: shut off or started again it can be snapshotted.",
    ),
    "vm_paused_not_quiesced": ErrorCode(
        "job",
        409,
        "Quiescing was required, but a machine that does not run cannot freeze its file systems.",
        "Resume or start it, or use --quiesce auto.",
    ),
    "vm_state_unsupported": ErrorCode(
        "job",
        409,
        "The machine is in a state in which it cannot be snapshotted.",
        "Bring it to running, paused or shut off (`virsh domstate` shows where it stands), then ask again.",
    ),
    "vm_state_changed": ErrorCode(
        "job", 409, "The machine started, stopped or was replaced while the snapshot was prepared.", "Ask again."
    ),
    "vm_managed_save": ErrorCode(
        "job",
        409,
        "The machine is shut off with a managed save image, which would undo a new definition.",
        "Start it, or remove the image with `virsh managedsave-remove`.",
    ),
    "vm_has_libvirt_snapshots": ErrorCode(
        "job",
        409,
        "The machine has snapshots of libvirt's, or inside its image; reverting one would put it back on its base.",
        "Delete them: `virsh snapshot-delete`, or `qemu-img snapshot -d` for those that libvirt does not list.",
    ),
    "vm_off_chain": ErrorCode(
        "refused",
        409,
        "The machine's disks are not on the volumes on record.",
        "Run `livesnap doctor`: it says who is where; `livesnap doctor --repair` adopts what can be.",
    ),
    "vm_no_disk": ErrorCode(
        "refused",
        409,
        "The machine has no disk that can be snapshotted.",
        "See `livesnap vm show` for the reason of each disk.",
    ),
    "vm_transient": ErrorCode("job", 409, "The machine has no persistent definition.", "Define it persistently first."),
    "vm_spans_pools": ErrorCode(
        "refused",
        409,
        "The machine's disks lie in storage domains of different pools.",
        "Snapshot them separately with --disk.",
    ),
    "vm_no_host": ErrorCode(
        "refused", 409, "The host of the machine is not known.", "Start the host's agent; see `livesnap host list`."
    ),
    # disks
    "disk_unknown": ErrorCode(
        "refused", 404, "The machine has no disk of that target.", "See `livesnap vm show` for its disks."
    ),
    "disk_shareable": ErrorCode("refused", 409, "Shareable disks cannot be snapshotted.", "Leave the disk out."),
    "disk_direct_lun": ErrorCode(
        "refused", 409, "Direct LUN disks cannot be snapshotted.", "Leave the disk out; use the array's own snapshots."
    ),
    "disk_block_device": ErrorCode(
        "refused",
        409,
        "The disk is a block device of the host.",
        "Leave the disk out, or move it to a file on a storage domain.",
    ),
    "disk_network": ErrorCode(
        "refused", 409, "The disk is a network disk.", "Leave the disk out; use the storage's own snapshots."
    ),
    "disk_libvirt_volume": ErrorCode(
        "refused", 409, "The disk is given as a libvirt storage pool's volume.", "Define it by its file instead."
    ),
    "disk_encrypted": ErrorCode(
        "refused", 409, "The disk is encrypted; a plain volume above it would hold plain text.", "Leave the disk out."
    ),
    "disk_readonly": ErrorCode("refused", 409, "The disk is read-only.", "Leave the disk out; it does not change."),
    "disk_cdrom": ErrorCode("refused", 409, "The disk is a CD-ROM.", "Leave the disk out."),
    "disk_floppy": ErrorCode("refused", 409, "The disk is a floppy.", "Leave the disk out."),
    "disk_transient": ErrorCode(
        "refused", 409, "The disk is transient: its writes are thrown away at shutdown.", "Leave the disk out."
    ),
    "disk_empty": ErrorCode("refused", 409, "The disk has no source.", "Leave the disk out."),
    "disk_unsupported": ErrorCode(
        "refused", 409, "The disk is of a kind that cannot be snapshotted.", "Leave the disk out."
    ),
    "disk_format_unsupported": ErrorCode(
        "refused", 409, "The disk's format is neither qcow2 nor raw.", "Convert it to qcow2."
    ),
    "disk_outside_storage_domain": ErrorCode(
        "refused",
        409,
        "The disk's file lies below no storage domain.",
        "Register the folder as a storage domain, or move the file into one.",
    ),
    "disk_error_policy": ErrorCode(
        "warning",
        200,
        "A failed write to the new volume would not pause the machine, so it cannot be put back without a loss.",
        "Give the disk error_policy='stop' in its <driver>, and restart the machine.",
    ),
    # freezing
    "guest_agent_missing": ErrorCode(
        "job",
        409,
        "Quiescing was required, but the guest has no compatible agent.",
        "Install and start qemu-guest-agent, or use --quiesce auto.",
    ),
    "freeze_failed": ErrorCode(
        "job",
        409,
        "The guest's agent did not freeze the file systems.",
        "Look at the guest's agent and its hooks, or use --quiesce best-effort.",
    ),
    "guest_not_thawed": ErrorCode(
        "job",
        409,
        "The freeze failed, and the guest's agent has not confirmed yet that nothing is frozen.",
        "Look at the guest's agent. livesnap's guard goes on thawing and succeeds once it answers.",
    ),
    "quiesce_unproven": ErrorCode(
        "job",
        409,
        "Quiescing was required, and it is not proven that the guest stayed frozen until the switch.",
        "Nothing was kept. Find out who thaws the guest early, raise held_limit_s, or use --quiesce auto.",
    ),
    "guest_frozen_by_others": ErrorCode(
        "job",
        409,
        "Somebody else has frozen the guest.",
        "Wait for the backup tool that did it, or thaw it: `virsh domfsthaw`.",
    ),
    "guard_unavailable": ErrorCode(
        "job",
        503,
        "The freeze guard does not answer, and without it no guest is frozen.",
        "Start livesnap's freeze guard on that host.",
    ),
    # pivot
    "pivot_failed": ErrorCode(
        "job",
        409,
        "QEMU refused the new volume; the machine writes to its previous volume.",
        "The message has QEMU's words; correct that and ask again.",
    ),
    "pivot_interrupted": ErrorCode(
        "job", 409, "The host agent died before the machine was on its new volumes.", "Ask again."
    ),
    "pivot_unknown": ErrorCode(
        "job", 409, "It is not known which volumes the machine uses.", "livesnap probes by itself."
    ),
    "chain_unexpected": ErrorCode(
        "job", 409, "The machine's chain is not the one on record.", "See `livesnap vm show`; find out who changed it."
    ),
    "chain_too_deep": ErrorCode(
        "refused",
        409,
        "A disk's chain has as many volumes as the settings allow; each one more makes the guest's freeze longer.",
        "Merge old snapshots, or raise the Manager's `max_chain`.",
    ),
    "chain_deep": ErrorCode(
        "warning", 200, "A disk's chain is deep: its layers lengthen the guest's freeze.", "Merge old snapshots soon."
    ),
    "backup_bitmaps": ErrorCode(
        "warning",
        200,
        "A backup tool keeps checkpoints or persistent bitmaps; a snapshot leaves them behind in the previous volume.",
        "Let the backup tool make a full backup after the snapshot.",
    ),
    "volume_not_writable": ErrorCode(
        "job",
        409,
        "The machine could not write to the new volume and was put back on the previous one.",
        "Give the storage domain room or repair it, then ask again.",
    ),
    "volume_permission": ErrorCode(
        "job",
        409,
        "The user that QEMU runs as may not open the new volume read-write.",
        "Correct owner and mode on the storage, for new files too.",
    ),
    "repair_failed": ErrorCode(
        "job",
        409,
        "The machine's disks are on mixed volumes and could not be brought back.",
        "See the job's observations; every volume is kept.",
    ),
}
