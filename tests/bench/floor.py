"""The floor: what a snapshot costs by the bare library, one script on one open connection. No product code.

`qemu-img create` for one disk after the other, freeze, one snapshot call for all disks, thaw. Nothing is checked,
nothing is written down, nothing watches.
"""

import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import libvirt

from tests.bed.need import tool
from tests.bed.paths import Owner, give
from tests.bed.vm import SNAPSHOT_FLAGS


@dataclass(frozen=True, slots=True, kw_only=True)
class Bare:
    """What one bare snapshot took, in ms. `window`: from the freeze call to the thaw's return; `held`: from the
    freeze's return to the thaw's."""

    latency: float
    window: float
    held: float
    steps: Mapping[str, float]


def bare_snapshot(
    vm: libvirt.virDomain, leaves: Mapping[str, Path], number: int, owner: Owner
) -> tuple[Bare, dict[str, Path]]:
    """Take one quiesced snapshot of the disks whose leaves are named; return what it took, and the new leaves.

    Raises AssertionError if the counts of frozen and thawed file systems differ, libvirtError, CalledProcessError.
    """
    new = {target: leaf.with_name(f"{target}-{vm.name()}-{number}.qcow2") for target, leaf in leaves.items()}
    marks = [time.perf_counter()]
    for target, path in new.items():
        words = [tool("qemu-img"), "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(leaves[target]), str(path)]
        subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
        give(path, owner)
    marks.append(time.perf_counter())
    request = _request(new)
    frozen = vm.fsFreeze()
    marks.append(time.perf_counter())
    try:
        vm.snapshotCreateXML(request, SNAPSHOT_FLAGS)
    finally:
        marks.append(time.perf_counter())
        thawed = vm.fsThaw()
    marks.append(time.perf_counter())
    assert frozen == thawed == len(leaves), f"{frozen} file systems frozen, {thawed} thawed, {len(leaves)} disks"
    names = ("create", "freeze", "switch", "thaw")
    steps = {name: (end - begin) * 1000 for name, begin, end in zip(names, marks[:-1], marks[1:], strict=True)}
    bare = Bare(
        latency=(marks[4] - marks[0]) * 1000,
        window=(marks[4] - marks[1]) * 1000,
        held=(marks[4] - marks[2]) * 1000,
        steps=steps,
    )
    return bare, new


def _request(new: Mapping[str, Path]) -> str:
    root = ET.Element("domainsnapshot")
    disks = ET.SubElement(root, "disks")
    for target, path in new.items():
        entry = ET.SubElement(disks, "disk", name=target, snapshot="external")
        ET.SubElement(entry, "driver", type="qcow2")
        ET.SubElement(entry, "source", file=str(path))
    return ET.tostring(root, encoding="unicode")
