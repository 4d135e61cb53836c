"""Every error code. The README's table is checked against this one. Pure."""

from common.error_code import ErrorCode
from common.vm_error_codes import VM_CODES

CATALOGUE: dict[str, ErrorCode] = {
    **VM_CODES,
    # requests
    "request_malformed": ErrorCode(
        "refused",
        422,
        "The request is not valid JSON or a field is wrong.",
        "Correct the field that the message names.",
    ),
    "name_invalid": ErrorCode(
        "refused",
        422,
        "A name is empty, over 255 characters, or has control characters.",
        "Choose a printable name of 1 to 255 characters.",
    ),
    "name_taken": ErrorCode(
        "refused",
        409,
        "The machine already has a snapshot of that name.",
        "Choose another name, or delete the old snapshot first.",
    ),
    "quiesce_mode_unknown": ErrorCode(
        "refused", 422, "The quiesce mode is none of the four.", "Use auto, require, best-effort or never."
    ),
    "role_insufficient": ErrorCode(
        "refused",
        403,
        "The token's role does not permit this.",
        "Use a token of that role; an admin makes one with `livesnap token create`.",
    ),
    "token_exists": ErrorCode(
        "refused",
        409,
        "There is, or was, a token of that name.",
        "Choose another name: names are never used twice, so that the audit log stays readable.",
    ),
    "token_not_found": ErrorCode("refused", 404, "There is no token of that name.", "See `livesnap token list`."),
    "token_wrong": ErrorCode(
        "refused",
        401,
        "The bearer token is missing or not known.",
        "Pass --token or LIVESNAP_TOKEN; a standalone instance keeps its token in its state directory.",
    ),
    "idempotency_key_reused": ErrorCode(
        "refused", 409, "The same idempotency key came with another request.", "Use a new key for a new request."
    ),
    "server_unreachable": ErrorCode(
        "process",
        503,
        "The command line could not reach the API.",
        "Check LIVESNAP_URL or --url, and that the API runs.",
    ),
    "internal_error": ErrorCode(
        "process",
        500,
        "A fault in livesnap itself.",
        "Look at the logs for the line with this job; report it with that line.",
    ),
    "not_found": ErrorCode(
        "refused", 404, "There is no such page in the API.", "See the OpenAPI description at /openapi.json."
    ),
    # storage
    "storage_full": ErrorCode(
        "job", 507, "The storage domain has no room for a new volume.", "Free space, or purge the trash."
    ),
    "storage_low": ErrorCode(
        "warning",
        200,
        "The storage domain has little room left for what machines write next.",
        "Free space, or change the Manager's `low_space_bytes`.",
    ),
    "storage_unavailable": ErrorCode(
        "job",
        503,
        "The storage domain is not mounted, or not the one it should be.",
        "Mount it where the settings say.",
    ),
    "storage_io_error": ErrorCode(
        "job",
        503,
        "Reading or writing on the storage domain failed.",
        "Look at the storage and the kernel's log of that machine.",
    ),
    "storage_domain_unknown": ErrorCode(
        "job", 404, "This process has no such storage domain in its settings.", "Add it to the process's settings."
    ),
    "volume_exists": ErrorCode(
        "job", 409, "A volume of that id exists with other parameters.", "Nothing was changed; ask for a new snapshot."
    ),
    "volume_deleted": ErrorCode(
        "job", 409, "A volume of that id was deleted; its tombstone forbids making it again.", "Ask for a new snapshot."
    ),
    "volume_not_found": ErrorCode(
        "job", 404, "A volume on record is not on its storage domain.", "Look for the file; nothing was changed."
    ),
    "volume_not_empty": ErrorCode(
        "job",
        409,
        "The new volume holds data of the guest, so it is not deleted.",
        "Look at the job; the machine may be using it at its next start.",
    ),
    "volume_in_use": ErrorCode(
        "job", 409, "Somebody holds the volume open.", "See which process has it open; nothing was deleted."
    ),
    "locking_unproven": ErrorCode(
        "job",
        409,
        "File locks are not seen to work on the storage domain, so nothing is deleted there.",
        "Mount it with working locks (NFS: version 4, or lockd).",
    ),
    "header_refused": ErrorCode(
        "job",
        409,
        "An image's header has a data file, an unexpected backing name or unknown features.",
        "Do not use that image, or convert it on a machine that you can spare.",
    ),
    "qemu_img_failed": ErrorCode("job", 409, "qemu-img refused.", "The message has its words."),
    # waiting
    "spm_unreachable": ErrorCode(
        "job",
        503,
        "The SPM of the pool did not answer in time.",
        "Start an SPM for that pool; see `livesnap job show`.",
    ),
    "clock_skew": ErrorCode(
        "warning",
        200,
        "The clocks of the host and the Manager differ; commands carry absolute deadlines.",
        "Keep both with NTP.",
    ),
    "host_unreachable": ErrorCode(
        "job", 503, "The host did not answer in time.", "Look at the host and its agent; see `livesnap host list`."
    ),
    "host_alive": ErrorCode(
        "refused",
        409,
        "The host's own lock on the storage is held: one of its agents lives, though it may not be heard.",
        "Restore the host's way to the broker; or, if it is to be given up, switch it off first.",
    ),
    "host_lost": ErrorCode(
        "job",
        409,
        "The job's host was removed as lost before it had said which volumes the machine uses.",
        "Start the machine elsewhere, from the volumes that `livesnap vm show` lists; did the timeline show a rollback, compare them with their parents first.",
    ),
    "libvirt_unavailable": ErrorCode(
        "job",
        503,
        "libvirt on the host cannot be reached by its agent.",
        "Start libvirtd there; the job goes on by itself.",
    ),
    "broker_unavailable": ErrorCode(
        "process", 503, "The message broker cannot be reached.", "Start the broker; the outbox sends what waits."
    ),
    "database_unavailable": ErrorCode(
        "process", 503, "The database cannot be reached.", "Start it; nothing that was accepted is lost."
    ),
    "not_ready": ErrorCode(
        "process", 503, "Something that the process needs is not there yet.", "Wait; the message names it."
    ),
    # jobs
    "job_not_found": ErrorCode("refused", 404, "There is no job of that id.", "See `livesnap job list`."),
    "job_finished": ErrorCode("refused", 409, "The job has ended already.", "See `livesnap job show`."),
    "job_not_waiting": ErrorCode("refused", 409, "The job is not waiting for an operator.", "See `livesnap job show`."),
    "job_cancelled": ErrorCode("job", 409, "The job was cancelled.", "Ask again if you want the snapshot after all."),
    "snapshot_not_found": ErrorCode(
        "refused",
        404,
        "There is no snapshot of that id or name.",
        "See `livesnap snapshot list VM`; VM/NAME names one.",
    ),
    "snapshot_busy": ErrorCode(
        "refused",
        409,
        "The snapshot is being taken, previewed or deleted, or a deletion has made it half of another.",
        "Wait for its job; one that is half merged can only be deleted, which goes on where the first attempt ended.",
    ),
    "snapshots_of_several_vms": ErrorCode(
        "refused", 409, "One request names snapshots of several machines.", "Ask for one machine at a time."
    ),
    "volume_shared": ErrorCode(
        "refused",
        409,
        "A volume of the snapshot is immutable, or other branches, disks or machines stand on it as well.",
        "Delete what else stands on it first: `livesnap vm show VM` draws it.",
    ),
    "merge_failed": ErrorCode(
        "job",
        500,
        "A volume could not be merged; the machine's chain is whole and works.",
        "Repair what the message names; `livesnap job resolve JOB` goes on, `livesnap job cancel JOB` gives it up.",
    ),
    "merge_torn": ErrorCode(
        "job",
        409,
        "The machine stopped in the moment in which it went on from the upper volume of a merge to the lower one.",
        "Compare the two volumes. If the upper one is right, or they show the same, cancel the job and delete again; if"
        " the lower one is newer, define the machine on that one and resolve the job.",
    ),
    "snapshot_ambiguous": ErrorCode(
        "refused", 409, "Several machines have a snapshot of that name.", "Name it VM/NAME, or use its id."
    ),
    "snapshot_unusable": ErrorCode(
        "refused",
        409,
        "The snapshot is being taken or deleted, or a volume of it is not on record.",
        "See `livesnap snapshot show SNAPSHOT` and `livesnap doctor`.",
    ),
    "confirmation_needed": ErrorCode(
        "refused",
        409,
        "What would be lost was not confirmed.",
        "Read what would be given up, then answer yes, or pass --yes.",
    ),
    "host_drained": ErrorCode(
        "refused",
        409,
        "The machine's host is drained: it finishes what it has and takes nothing new.",
        "Migrate the machine to another host, or `livesnap host resume HOST` when the maintenance is over.",
    ),
    "host_exists": ErrorCode(
        "refused",
        409,
        "A host of that name has joined already.",
        "Choose another name; or, to give it a new key and password, `livesnap host add HOST --renew`.",
    ),
    "host_has_jobs": ErrorCode(
        "refused",
        409,
        "The host still has unfinished jobs, or its machines have.",
        "`livesnap host drain HOST`, wait for them (`livesnap job list`), then remove it.",
    ),
    "pool_exists": ErrorCode(
        "refused", 409, "An SPM of that pool has reported already.", "Copy its settings file to a further SPM."
    ),
    "host_not_found": ErrorCode("refused", 404, "There is no host of that name.", "See `livesnap host list`."),
    "attempts_exhausted": ErrorCode(
        "job",
        409,
        "The same step was tried as often as is sensible.",
        "See the job's attempts; correct the cause, then `livesnap job resolve JOB`.",
    ),
    # messages
    "message_rejected": ErrorCode(
        "process",
        400,
        "A message is malformed, forged, or not for this consumer.",
        "See the log line of the process that rejected it.",
    ),
    "attempt_stale": ErrorCode(
        "process", 409, "A message of an older attempt came late.", "None: it was refused and nothing was touched."
    ),
    "deadline_passed": ErrorCode(
        "process", 409, "A command came after its deadline.", "None: the Manager asks again; keep the clocks together."
    ),
    "settings_invalid": ErrorCode("process", 500, "A setting is missing or wrong.", "Correct what the message names."),
    "lease_lost": ErrorCode(
        "process", 503, "This SPM no longer holds its pool's lease.", "None: it ends itself and another takes over."
    ),
}
