"""Jobs, snapshots, machines and hosts as a person reads them (with --json the API's own documents are printed)."""

from collections.abc import Callable, Sequence
from typing import Any

from common.error_codes import CATALOGUE
from manager.cli.client import Json
from manager.cli.receipt_page import attempts, receipt
from manager.cli.screen import entry_row, heading, note, print_facts, print_table
from manager.cli.text import moment, progress, size
from manager.cli.tree import tree


def hosts(found: Sequence[Json]) -> None:
    """Print the list of hosts."""
    rows = (
        (
            host["id"],
            host["state"],
            host["duty"].replace("_", " "),
            host["vm_count"],
            moment(host["seen_at"]),
            " ".join(host["frozen"]),
            host["problem"],
        )
        for host in found
    )
    print_table(("HOST", "STATE", "DUTY", "VMS", "SEEN", "FROZEN", "PROBLEM"), rows, empty="no host has reported yet")


def duty(found: Json) -> None:
    """Print what a host does from now on."""
    print_facts([("host", found["id"]), ("duty", found["duty"].replace("_", " ")), ("jobs", " ".join(found["jobs"]))])


def joined(found: Json) -> None:
    """Print who was taken in, without what is secret."""
    names = ("id", "queue", "account", "file")
    print_facts([*((name, found[name]) for name in names), *(("to do", each) for each in found["to_do"])])


def removed(found: Json) -> None:
    """Print who was taken out."""
    machines = ("machines there", " ".join(found["vms"]))
    print_facts([("host", found["id"]), machines, *(("to do", each) for each in found["to_do"])])


def pools(found: Sequence[Json]) -> None:
    """Print the list of pools."""
    rows = ((each["id"], each["state"], moment(each["seen_at"]), " ".join(each["storage_domains"])) for each in found)
    print_table(("POOL", "STATE", "SEEN", "STORAGE DOMAINS"), rows, empty="no SPM has reported yet")


def registered(found: Json) -> None:
    """Print a storage domain that was made here."""
    names = ("name", "id", "pool", "root")
    line = f'[storage_domains] {found["name"]} = "{found["root"]}"'
    todo = f"Add to the settings of its SPMs and hosts, and restart them: {line}"
    print_facts([*((name, found[name]) for name in names), ("changed", " ".join(found["changed"])), ("to do", todo)])


def dead_letters(found: Sequence[Json]) -> None:
    """Print the list of dead letters."""
    rows = ((moment(each["died_at"]), each["queue"], each["reason"], each["task"], each["about"]) for each in found)
    print_table(("DIED", "QUEUE", "REASON", "TASK", "ABOUT"), rows, empty="there are no dead letters")


def limits(found: Sequence[Json]) -> None:
    """Print the list of limits."""
    rows = (
        (each["scope"].replace("_", "-"), each["name"] or "each", each["max_jobs"], each["at_work"], each["waiting"])
        for each in found
    )
    print_table(("SCOPE", "NAME", "MAX JOBS", "AT WORK", "WAITING"), rows, empty="no limit is set")


def purged(found: Json) -> None:
    """Print how many dead letters are gone."""
    print_facts([("purged", found["purged"])])


def storage_domains(found: Sequence[Json]) -> None:
    """Print the list of storage domains."""
    rows = (
        (each["name"], each["pool"], size(each["free_bytes"]), size(each["total_bytes"]), each["root"], each["problem"])
        for each in found
    )
    columns = ("STORAGE DOMAIN", "POOL", "FREE", "TOTAL", "ROOT", "PROBLEM")
    print_table(columns, rows, empty="no SPM has reported yet")


def removed_host(found: Json) -> None:
    """Print what became of a host that was removed as lost."""
    print_facts(
        [
            ("host", found["id"]),
            ("removed", moment(found["removed_at"])),
            ("machines there", " ".join(found["vms"])),
            ("jobs ended", " ".join(found["jobs"])),
            *(("to do", sentence) for sentence in found["to_do"]),
        ]
    )


def vms(found: Sequence[Json]) -> None:
    """Print the list of machines."""
    rows = ((vm["name"], vm["state"], _host_of(vm), vm["agent"], vm["problem"], _holder(vm), vm["id"]) for vm in found)
    columns = ("VM", "STATE", "HOST", "AGENT", "PROBLEM", "HELD BY", "ID")
    print_table(columns, rows, empty="no machine has been reported yet")


def _host_of(vm: Json) -> str:
    """Return a machine's host, with what must be known of it: else a state of long ago is taken for that of now."""
    if vm["host_state"] == "silent":
        return f"{vm['host']} (silent since {moment(vm['seen_at'])})"
    return f"{vm['host']} (libvirt is down)" if vm["host_state"] == "libvirt_down" else str(vm["host"] or "")


def vm(found: Json) -> None:
    """Print one machine with its disks and chains."""
    names = ("id", "name", "state", "host", "host_state", "agent", "problem", "problem_detail", "busy_with")
    cure = CATALOGUE[found["problem"]].cure if found["problem"] in CATALOGUE else ""
    seen_at = ("seen_at", moment(found["seen_at"]))
    print_facts([*((name, found[name]) for name in names), seen_at, ("what to do", cure)])
    if found["preview"]:
        print_facts([("shows for trial", _trial(found["preview"]))])
    if found["lock"]:
        heading("Locked")
        lock(found["lock"])
    heading("Disks")
    rows = (
        (
            disk["target"],
            disk["format"],
            size(disk["size_bytes"]),
            disk["storage_domain"],
            disk["path"],
            "yes" if disk["can_snapshot"] else "no",
            _why_not(disk),
        )
        for disk in found["disks"]
    )
    columns = ("TARGET", "FORMAT", "SIZE", "STORAGE DOMAIN", "PATH", "SNAPSHOT", "WHY NOT")
    print_table(columns, rows, empty="the machine has no disk")
    for disk in found["disks"]:
        if disk["chain"]:
            heading(f"Volumes of {disk['target']}")
            nodes = [node for node in found["tree"] if node["target"] == disk["target"]]
            print_table(("VOLUME", "SIZE", "SNAPSHOT", "", "IF DELETED"), tree(nodes), empty="")


def _trial(preview: Json) -> str:
    targets = " ".join(disk["target"] for disk in preview["disks"])
    since = moment(preview["since"])
    return f"snapshot {preview['snapshot_name']} on {targets} since {since}; `snapshot commit` or `undo` ends it"


def lock(found: Json) -> None:
    """Print a lock on a machine."""
    until = moment(found["until"]) or "it is unlocked"
    print_facts(
        [("lock", found["id"]), ("reason", found["reason"]), ("since", moment(found["since"])), ("until", until)]
    )


def snapshots(found: Sequence[Json]) -> None:
    """Print the list of a machine's snapshots."""
    rows = (
        (
            snapshot["name"],
            snapshot["state"],
            snapshot["consistency"],
            moment(snapshot["taken_at"]),
            " ".join(disk["target"] for disk in snapshot["disks"]),
            snapshot["description"],
            snapshot["id"],
        )
        for snapshot in found
    )
    columns = ("SNAPSHOT", "STATE", "CONSISTENCY", "TAKEN", "DISKS", "DESCRIPTION", "ID")
    print_table(columns, rows, empty="the machine has no snapshot")


def snapshot(found: Json) -> None:
    """Print one snapshot with its disks and its receipt."""
    names = ("id", "name", "description", "vm_name", "vm", "state", "consistency", "consistency_reason")
    print_facts([*((name, found[name]) for name in names), ("taken_at", moment(found["taken_at"]))])
    if found["partial"]:
        print_facts([("partial", "a writable disk was left out")])
    heading("Disks")
    rows = ((disk["target"], size(disk["size_bytes"]), disk["storage_domain"], disk["path"]) for disk in found["disks"])
    print_table(("TARGET", "SIZE", "STORAGE DOMAIN", "PATH"), rows, empty="no disk")
    if found["excluded"]:
        heading("Left out")
        excluded = ((disk["target"], disk["reason"]) for disk in found["excluded"])
        print_table(("TARGET", "REASON"), excluded, empty="")
    if found["receipt"]:
        receipt(found["receipt"])


def jobs(found: Sequence[Json]) -> None:
    """Print the list of jobs."""
    rows = (
        (
            job["id"],
            job["kind"],
            job["vm_name"],
            job["state"],
            job["error"]["code"] if job["error"] else "",
            job["waiting_for"],
            moment(job["created_at"]),
        )
        for job in found
    )
    print_table(("JOB", "KIND", "VM", "STATE", "ERROR", "WAITING FOR", "CREATED"), rows, empty="there is no job")


def outcome(found: Json) -> None:
    """Print what became of a job whose timeline was shown while it ran."""
    print_facts(_facts(found))


def job(found: Json) -> None:
    """Print one job with its timeline and attempts."""
    outcome(found)
    heading("Timeline")
    print_table(
        ("AT", "AFTER", "STEP", ""), (entry_row(entry) for entry in found["timeline"]), empty="nothing happened yet"
    )
    attempts(found["attempts"])


def preflight(lines: Sequence[Json]) -> None:
    """Print what a snapshot would do, and what stands against it."""
    rows = ((line["level"], line["subject"], line["code"], line["message"], line["hint"]) for line in lines)
    print_table(("LEVEL", "SUBJECT", "CODE", "FOUND", "WHAT TO DO"), rows, empty="nothing to check")


def deletions(found: Sequence[Json]) -> None:
    """Print what a deletion would do to which volume."""
    rows = (
        (each["name"], disk["target"], disk["vanishes"], disk["merged_into"] or "nothing: it is discarded")
        for each in found
        for disk in each["disks"] or [{"target": "", "vanishes": "", "merged_into": "only the record goes"}]
    )
    print_table(("SNAPSHOT", "DISK", "VANISHES", "ITS DATA GOES TO"), rows, empty="nothing to delete")


def diagnosis(report: Json) -> None:
    """Print what doctor has found, and what is to be done."""
    rows = (
        (
            each["code"],
            each["subject"],
            "safe" if each["safe"] else "operator",
            each["seen"],
            each["means"],
            each["plan"],
        )
        for each in report["findings"]
    )
    columns = ("FINDING", "SUBJECT", "REPAIR", "SEEN", "MEANS", "PLAN")
    print_table(columns, rows, empty="database, storage and machines agree")
    if report["left_out"]:
        note(f"left out, since a job or a lock holds them: {', '.join(report['left_out'])}")


def _repair(finding: Json) -> str:
    return "safe" if finding["safe"] else "operator"


def repairs(report: Json) -> None:
    """Print what doctor has repaired, and what is left."""
    heading("Done")
    rows = (
        (each["code"], each["subject"], each["job"]["state"], _why(each["job"]), each["job"]["id"])
        for each in report["done"]
    )
    print_table(("FINDING", "SUBJECT", "STATE", "", "JOB"), rows, empty="nothing was to be repaired")
    heading("Left")
    diagnosis(report)


def _why(job: Json) -> str:
    return str(job["error"]["message"]) if job["error"] else ""


def _why_not(disk: Json) -> str:
    return "" if disk["can_snapshot"] else f"{disk['refusal']}: {disk['refusal_message']}"


def _facts(found: Json) -> list[tuple[str, object]]:
    error = found["error"] or {"code": "", "message": "", "hint": ""}
    return [
        ("job", found["id"]),
        ("kind", found["kind"]),
        ("vm", found["vm_name"]),
        ("snapshot", found["snapshot_name"]),
        ("state", found["state"]),
        ("waiting for", found["waiting_for"]),
        ("progress", progress(found.get("progress"))),
        ("error", error["code"]),
        ("", error["message"]),
        ("what to do", error["hint"]),
        ("created", moment(found["created_at"])),
        ("finished", moment(found["finished_at"])),
    ]


def _short(job_id: str | None) -> str:
    return (job_id or "")[:8]


def _holder(vm: Json) -> str:
    """Return what keeps jobs off a machine: a job, by the beginning of its id, or a lock, by its reason."""
    job_id, held = vm["busy_with"], vm["lock"]
    return f"job {job_id[:8]}" if job_id else held["reason"] if held else ""


def new_token(made: Json) -> None:
    """Print a new token alone on standard output, so that a script can take it."""
    note(f"Token {made['name']!r} of role {made['role']}; it is shown this once.")
    print_facts([("", made["token"])])


def tokens(found: Sequence[Json]) -> None:
    """Print the list of tokens."""
    rows = (
        (each["name"], each["role"], *(moment(each[key]) for key in ("created_at", "expires_at", "revoked_at")))
        for each in found
    )
    print_table(("NAME", "ROLE", "CREATED", "EXPIRES", "REVOKED"), rows, empty="only the token file's are known")


def audit(found: Sequence[Json]) -> None:
    """Print the audit log."""
    rows = (
        (
            moment(each["at"]),
            each["token"],
            each["role"],
            each["method"],
            each["path"],
            each["status"] or "none",
            each["location"],
        )
        for each in found
    )
    columns = ("AT (UTC)", "TOKEN", "ROLE", "METHOD", "PATH", "ANSWER", "JOB")
    print_table(columns, rows, empty="nothing was asked for yet")


_LOG_HEAD = ("at", "level", "event", "process")


def log(found: Sequence[Json]) -> None:
    """Print log lines; the ids of the job and its machine, which most have, are left out."""
    left_out = {*_LOG_HEAD, "job", "vm", "step", "attempt"}
    rows = (
        (
            str(line["at"])[11:23],
            line.get("process", ""),
            line["event"],
            " ".join(f"{key}={value}" for key, value in line.items() if key not in left_out),
        )
        for line in found
    )
    print_table(("AT (UTC)", "PROCESS", "EVENT", "WHAT"), rows, empty="no line of this job is in these logs")


PICTURES: dict[str, Callable[[Any], None]] = {
    "hosts": hosts,
    "removed_host": removed_host,
    "duty": duty,
    "joined": joined,
    "removed": removed,
    "pools": pools,
    "dead_letters": dead_letters,
    "limits": limits,
    "purged": purged,
    "registered": registered,
    "storage_domains": storage_domains,
    "vms": vms,
    "vm": vm,
    "lock": lock,
    "snapshots": snapshots,
    "snapshot": snapshot,
    "jobs": jobs,
    "job": job,
    "outcome": outcome,
    "preflight": preflight,
    "deletions": deletions,
    "diagnosis": diagnosis,
    "repairs": repairs,
    "log": log,
    "new_token": new_token,
    "tokens": tokens,
    "audit": audit,
}
