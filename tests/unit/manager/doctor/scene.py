"""A small world that doctor looks at: two machines on one host, one of them with a snapshot, all in order.

web1   base.qcow2 (adopted) <- one <- leaf (both made by livesnap)     snapshots: one/first, leaf/second
db1    db.qcow2, which no job has ever adopted
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from common.ids import (
    DiskId,
    HostId,
    PoolId,
    SnapshotId,
    StorageDomainId,
    VmId,
    VolumeId,
    adopted_volume_id,
    derived_id,
    disk_id,
)
from common.images.layout import volume_path
from common.messaging.messages import Format, VolumeAt
from common.messaging.reports import VmState
from common.messaging.surveys import (
    DiskSeen,
    FileSeen,
    LayerSeen,
    MetadataSeen,
    NodeSeen,
    Spot,
    StrayFile,
    TrashSeen,
    VmSeen,
    VolumeSeen,
)
from manager.doctor.diagnosis import diagnose
from manager.doctor.facts import (
    DiskRecord,
    Facts,
    Record,
    SnapshotRecord,
    StorageRecord,
    StorageSeen,
    Survey,
    VmRecord,
    VolumeRecord,
)
from manager.doctor.findings import Finding
from manager.doctor.view import View

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
PLACE, POOL = StorageDomainId(derived_id("place")), PoolId("default")
H1, H2 = HostId("h1"), HostId("h2")
WEB, DB = VmId(derived_id("web1")), VmId(derived_id("db1"))
WEB_DISK, DB_DISK = disk_id(WEB, "vda"), disk_id(DB, "vda")
SIZE = 1 << 30
FIRST, SECOND = SnapshotId(derived_id("first")), SnapshotId(derived_id("second"))


def volume(name: str, disk: DiskId = WEB_DISK) -> VolumeAt:
    """Return a volume as livesnap makes it; its id is derived from a test's name for it."""
    id_ = VolumeId(derived_id(name))
    return VolumeAt(volume_id=id_, storage_domain_id=PLACE, path=volume_path(disk, id_), format=Format.QCOW2)


def adopted(path: str) -> VolumeAt:
    """Return a volume as it is adopted."""
    id_ = adopted_volume_id(PLACE, path)
    return VolumeAt(volume_id=id_, storage_domain_id=PLACE, path=path, format=Format.QCOW2)


BASE, ONE, LEAF, DB_LEAF = adopted("base.qcow2"), volume("one"), volume("leaf"), adopted("db.qcow2")


def spot(of: VolumeAt | str) -> Spot:
    return Spot(storage_domain_id=PLACE, path=of if isinstance(of, str) else of.path)


def file(of: VolumeAt | str, on: VolumeAt | str | None = None, **changes: Any) -> FileSeen:
    """Return a file in use as a machine's leaf or below one, above `on`."""
    seen = FileSeen(
        path=spot(of).path,
        stored_bytes=1000,
        modified_at=NOW,
        is_locked=True,
        size_bytes=SIZE,
        backing=spot(on) if on is not None else None,
        backing_format="qcow2" if on is not None else "",
    )
    return replace(seen, **changes)


def metadata(of: VolumeAt, parent: VolumeAt | None, disk: DiskId = WEB_DISK, **changes: Any) -> MetadataSeen:
    """Return a volume's document."""
    seen = MetadataSeen(
        volume_id=of.volume_id,
        disk_id=disk,
        vm_id=WEB,
        path=of.path,
        format="qcow2",
        parent_id=parent.volume_id if parent else None,
        snapshot_id=None,
        size_bytes=SIZE,
        generation=3,
    )
    return replace(seen, **changes)


def layers(*of: VolumeAt | str, form: str = "qcow2") -> tuple[LayerSeen, ...]:
    return tuple(LayerSeen(path=f"/srv/{spot(each).path}", format=form, spot=spot(each)) for each in of)


def chain(live: tuple[LayerSeen, ...], persistent: tuple[LayerSeen, ...] | None = None) -> tuple[DiskSeen, ...]:
    """Return the one disk of a machine, whose definitions agree unless told."""
    return (DiskSeen(target="vda", live=live, persistent=live if persistent is None else persistent),)


def node(of: VolumeAt | str, device: str, depth: int) -> NodeSeen:
    return NodeSeen(node_name=f"node-{spot(of).path}", spot=spot(of), device=device, depth=depth)


def running(vm: VmId, name: str, *of: VolumeAt) -> VmSeen:
    """Return a machine that runs with that chain, leaf first."""
    return VmSeen(vm_id=vm, name=name, state=VmState.RUNNING, is_active=True, disks=chain(layers(*of)))


class Scene:
    """What is on record and what is there; a test changes what it is about, then asks for the findings."""

    def __init__(self) -> None:
        self.vms = {
            WEB: VmRecord(name="web1", busy_with="", attempt=3),
            DB: VmRecord(name="db1", busy_with="", attempt=0),
        }
        self.disks = {
            WEB_DISK: DiskRecord(vm=WEB, target="vda", leaf=LEAF.volume_id),
            DB_DISK: DiskRecord(vm=DB, target="vda", leaf=DB_LEAF.volume_id),
        }
        self.volumes: dict[VolumeId, VolumeRecord] = {}
        for of, disk, parent in ((BASE, WEB_DISK, None), (ONE, WEB_DISK, BASE), (LEAF, WEB_DISK, ONE)):
            self.on_record(of, disk, parent)
        self.on_record(DB_LEAF, DB_DISK, None)
        self.snapshots = {
            FIRST: SnapshotRecord(vm=WEB, name="first", disks=((WEB_DISK, BASE.volume_id, ONE.volume_id),)),
            SECOND: SnapshotRecord(vm=WEB, name="second", disks=((WEB_DISK, ONE.volume_id, LEAF.volume_id),)),
        }
        self.dropped: frozenset[SnapshotId] = frozenset()
        self.kept: frozenset[VolumeId] = frozenset()
        web, db = running(WEB, "web1", LEAF, ONE, BASE), running(DB, "db1", DB_LEAF)
        self.hosts: dict[HostId, dict[VmId, VmSeen]] = {H1: {WEB: web, DB: db}, H2: {}}
        self.seen = {
            of.path: VolumeSeen(metadata=document, file=file(of, on))
            for of, on, document in (
                (BASE, None, metadata(BASE, None, is_created=False, is_immutable=True)),
                (ONE, BASE, metadata(ONE, BASE, snapshot_id=FIRST)),
                (LEAF, ONE, metadata(LEAF, ONE, snapshot_id=SECOND)),
            )
        }
        self.strays: list[StrayFile] = []
        self.storage = StorageSeen(locking_is_proven=True, named=(file(DB_LEAF),))
        self.silent: dict[str, str] = {}
        self.unsettled: frozenset[VmId] = frozenset()
        self.jobs: tuple[Any, ...] = ()
        self._ids = 0

    # ---- changes ------------------------------------------------------------------------------------------------

    def on_record(self, of: VolumeAt, disk: DiskId, parent: VolumeAt | None, **changes: Any) -> None:
        known = VolumeRecord(
            volume=of,
            disk=disk,
            parent=parent.volume_id if parent else None,
            is_created=of.path.startswith("images/"),
            is_immutable=of is BASE,
        )
        self.volumes[of.volume_id] = replace(known, **changes)

    def web(self, **changes: Any) -> None:
        """Change how web1 looks on its host."""
        self.hosts[H1][WEB] = replace(self.hosts[H1][WEB], **changes)

    def web_on(self, *of: VolumeAt | str, persistent: tuple[LayerSeen, ...] | None = None) -> None:
        """Put web1 on another chain, leaf first."""
        self.web(disks=chain(layers(*of), persistent))

    def name(self, *files: FileSeen) -> None:
        """Let files outside `images/` be there."""
        self.storage = replace(self.storage, named=(*self.storage.named, *files))

    def add(self, of: VolumeAt, on: VolumeAt, **changes: Any) -> None:
        """Let a volume of web1's disk be on storage that nobody uses: empty, free, made by livesnap unless told."""
        of_file = {name: changes.pop(name) for name in ("is_empty", "is_locked", "problem") if name in changes}
        looks = file(of, on, **{"is_empty": True, "is_locked": False, **of_file})
        self.seen[of.path] = VolumeSeen(metadata=metadata(of, on, **changes), file=looks)

    def close(self, of: VolumeAt) -> None:
        """Let nobody have a volume open."""
        seen = self.seen[of.path]
        assert seen.file is not None
        self.seen[of.path] = replace(seen, file=replace(seen.file, is_locked=False))

    def lose_file(self, of: VolumeAt) -> None:
        self.seen[of.path] = replace(self.seen[of.path], file=None)

    def trash(self, of: VolumeAt) -> None:
        gone = TrashSeen(volume_id=of.volume_id, path=f"trash/{of.volume_id}", deleted_at=NOW - timedelta(days=1))
        self.storage = replace(self.storage, trash=(gone,))

    def document(self, of: VolumeAt, **changes: Any) -> None:
        """Change a volume's metadata."""
        seen = self.seen[of.path]
        self.seen[of.path] = replace(seen, metadata=replace(seen.metadata, **changes))

    # ---- looking ------------------------------------------------------------------------------------------------

    def facts(self) -> Facts:
        record = Record(
            vms=self.vms,
            disks=self.disks,
            volumes=self.volumes,
            snapshots=self.snapshots,
            dropped=self.dropped,
            kept=self.kept,
            jobs=self.jobs,
            storage={PLACE: StorageRecord(name="main", pool=POOL, problem="")},
            hosts=tuple(self.hosts),
        )
        seen = replace(self.storage, volumes=tuple(self.seen.values()), strays=tuple(self.strays))
        hosts = {host: tuple(vms.values()) for host, vms in self.hosts.items() if f"host {host}" not in self.silent}
        survey = Survey(hosts=hosts, storage={PLACE: seen}, silent=self.silent)
        return Facts(record=record, survey=survey, unsettled=self.unsettled, now=NOW, make_id=self._make_id)

    def view(self) -> View:
        return View(self.facts())

    def findings(self) -> tuple[Finding, ...]:
        return diagnose(self.facts())

    def only(self, code: str) -> Finding:
        """Return the one finding that there is, which must be of that code."""
        found = self.findings()
        assert [each.code for each in found] == [code], found
        assert found[0].seen
        return found[0]

    def _make_id(self) -> str:
        self._ids += 1
        return derived_id("made", str(self._ids))
