"""The receipt of a snapshot: one document, made when it is completed and kept with it (jobs and volumes may go)."""

import json
from dataclasses import fields, replace
from typing import Any, Final

from pydantic import TypeAdapter
from sqlalchemy import Connection, select

from common.ids import JobId, VmId
from common.messaging.messages import DiskObserved, DiskSwitch, VolumeAt
from common.receipt import Receipt
from manager.flows.base import SnapshotTaken
from manager.store import codec
from manager.store.show_jobs import attempts
from manager.store.tables import snapshots, storage_domains, vms
from manager.views import AttemptView, DiskReceiptView, RoutingView, VolumeView

_ATTEMPTS: Final = TypeAdapter(tuple[AttemptView, ...])
_DISKS: Final = TypeAdapter(tuple[DiskReceiptView, ...])


def receipt_of(connection: Connection, job: JobId, taken: SnapshotTaken) -> dict[str, Any]:
    """Return all that the label of a snapshot rests on, as JSON (manager/views.py describes the parts).

    Beside the keys named here it has every field of the host's receipt (common/receipt.py); each is None where that
    receipt was lost with its agent.
    """
    pivoted, names = taken.observed.receipt, _names(connection, taken.vm)
    excluded = select(snapshots.c.excluded_json).where(snapshots.c.id == taken.snapshot)
    return {
        "consistency": taken.consistency.value,
        "consistency_reason": taken.reason,
        "quiesce_mode": taken.mode,
        "host": taken.host,
        **dict.fromkeys(field.name for field in fields(Receipt)),
        **(codec.RECEIPT.dump_python(_readable(pivoted, names), mode="json") if pivoted else {}),
        "attempts": _ATTEMPTS.dump_python(attempts(connection, job), mode="json"),
        "disks": _DISKS.dump_python(_disks(taken, names), mode="json"),
        "excluded": json.loads(connection.execute(excluded).scalar_one()),
    }


def _names(connection: Connection, vm: VmId) -> dict[str, str]:
    """Return how people call what a host knows by its id: the vm and the storage domains."""
    shown = [select(vms.c.id, vms.c.name).where(vms.c.id == vm), select(storage_domains.c.id, storage_domains.c.name)]
    return {id_: name for query in shown for id_, name in connection.execute(query)}


def _readable(pivoted: Receipt, names: dict[str, str]) -> Receipt:
    warnings = (replace(line, subject=names.get(line.subject, line.subject)) for line in pivoted.warnings)
    return replace(pivoted, warnings=tuple(warnings))


def _disks(taken: SnapshotTaken, names: dict[str, str]) -> tuple[DiskReceiptView, ...]:
    seen = {disk.target: disk for disk in taken.observed.disks}
    return tuple(_disk(switch, seen.get(switch.target), names) for switch in taken.disks)


def _disk(switch: DiskSwitch, seen: DiskObserved | None, names: dict[str, str]) -> DiskReceiptView:
    return DiskReceiptView(
        target=switch.target,
        previous=_volume(switch.old, names),
        new=_volume(switch.new, names),
        routing=_routing(seen) if seen else None,
        first_write_bytes=seen.first_write_bytes if seen else 0,
    )


def _routing(seen: DiskObserved) -> RoutingView:
    return RoutingView(
        live_definition=seen.live,
        persistent_definition=seen.persistent,
        new_is_locked=seen.new_is_locked,
        qemu_was_asked=bool(seen.qemu),
        qemu=seen.qemu,
    )


def _volume(volume: VolumeAt, names: dict[str, str]) -> VolumeView:
    at = volume.storage_domain_id
    return VolumeView(volume_id=volume.volume_id, storage_domain=names.get(at, at), path=volume.path)
