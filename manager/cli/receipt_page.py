"""A snapshot's receipt as a page: what was done to the guest and to its disks, and what proves it."""

from collections.abc import Iterator, Sequence
from typing import Any

from manager.cli.client import Json
from manager.cli.screen import heading, print_facts, print_table
from manager.cli.text import moment

_UNKNOWN = "not known: the host's word was lost"


def receipt(found: Json) -> None:
    """Print the receipt of a snapshot that was taken."""
    heading("Receipt")
    print_facts(_freezing(found))
    if found.get("warnings"):
        heading("Warned of beforehand")
        rows = ((line["subject"], line["code"], line["message"], line["hint"]) for line in found["warnings"])
        print_table(("SUBJECT", "CODE", "FOUND", "WHAT TO DO"), rows, empty="")
    for disk in found["disks"]:
        heading(f"Disk {disk['target']}")
        print_facts(_disk(disk))
    attempts(found["attempts"])


def attempts(found: Sequence[Json]) -> None:
    """Print what was sent to whom and what came of it; below, since they are sentences, why each ended so."""
    heading("Attempts")
    quiesce = {True: "yes", False: "no", None: ""}
    rows = (
        (
            attempt["attempt"],
            attempt["step"],
            attempt["to"],
            quiesce[attempt["quiesce"]],
            attempt["outcome"] or "unanswered",
            attempt["deliveries"],
        )
        for attempt in found
    )
    print_table(("ATTEMPT", "STEP", "TO", "QUIESCE", "OUTCOME", "SENT"), rows, empty="nothing was sent yet")
    print_facts((f"why {attempt['attempt']}", attempt["reason"]) for attempt in found)


def _freezing(found: Json) -> Iterator[tuple[str, object]]:
    from common.receipt import REASONS

    yield "consistency", found["consistency"]
    yield "because", REASONS.get(found["consistency_reason"], found["consistency_reason"])
    yield "asked for", f"quiesce {found['quiesce_mode']}"
    yield "machine", f"{found['vm_state']}, on host {found['host']}" if found["vm_state"] else f"on {found['host']}"
    yield "freeze", _freeze(found)
    if found["freeze_sent"]:
        yield "thaw", _thaw(found)
        yield "guard", "fired: it has thawed the guest" if found["guard_fired"] else "did not fire"
    yield "switch", _switch(found)


def _freeze(found: Json) -> str:
    match found["freeze_sent"], found["freeze_confirmed"]:
        case None, _:
            return _UNKNOWN
        case True, True:
            return f"sent and confirmed, {_counted(found['frozen_filesystems'])}, {_of(found, 'freeze')}"
        case True, _:
            return f"sent, never confirmed, {_of(found, 'freeze')}"
        case _:
            return "not sent"


def _thaw(found: Json) -> str:
    held = f"frozen for {_of(found, 'held')}"
    if not found["thaw_confirmed"]:
        return f"not confirmed; {held} when it was left to the guard"
    return f"confirmed, {_counted(found['thawed_filesystems'])}; {held}"


def _switch(found: Json) -> str:
    if found["switched_at"] is None:
        return _UNKNOWN
    same_run = "" if found["own_switch"] else "; the machine was started anew after it"
    return f"{moment(found['switched_at'])}, took {_ms(found['switch_ms'])}{same_run}"


def _counted(filesystems: int) -> str:
    return f"{filesystems} file system{'' if filesystems == 1 else 's'}"


def _of(found: Json, what: str) -> str:
    return f"{_ms(found[f'{what}_ms'])} of at most {found[f'{what}_limit_ms'] / 1000:g} s"


def _ms(value: float) -> str:
    return f"{value:.1f} ms"


def _disk(disk: Json) -> Iterator[tuple[str, object]]:
    yield "previous volume", _place(disk["previous"])
    yield "new volume", _place(disk["new"])
    routing = disk["routing"]
    if routing is None:
        yield "routing", _UNKNOWN
        return
    yield "live definition", _named(routing["live_definition"], disk)
    yield "persistent definition", _named(routing["persistent_definition"], disk)
    yield "image lock", "held on the new volume" if routing["new_is_locked"] else "not held on the new volume"
    asked = routing["qemu_was_asked"]
    yield "QEMU itself", _named(routing["qemu"], disk) if asked else "not asked: the rest agrees"
    first = disk["first_write_bytes"]
    yield "first write", f"seen on the new volume, up to byte {first}" if first else "none seen, which proves nothing"


def _place(volume: Json) -> str:
    return f"{volume['storage_domain']}: {volume['path']}"


def _named(path: str, disk: Json) -> str:
    """Return which of the disk's two volumes a host's path is, or the path itself."""
    named: dict[str, Any] = {"new volume": disk["new"], "previous volume": disk["previous"]}
    return next((name for name, volume in named.items() if path.endswith(f"/{volume['path']}")), path or "none")
