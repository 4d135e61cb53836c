"""Removing livesnap and its state leaves every machine bootable, with its data, and virsh can flatten it."""

import shutil
from functools import partial

import libvirt
import pytest

from tests.bed.oracle import examine
from tests.e2e.kit import place
from tests.wait import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.needs("guest", "redis-server")]


def has_no_job(machine: libvirt.virDomain, target: str) -> bool:
    """Say whether no block job runs on a disk."""
    return not machine.blockJobInfo(target)


def test_machines_live_on_without_livesnap() -> None:
    with place() as here:
        vm = here.guest("stays", disks=2)
        with here.livesnap() as livesnap:
            livesnap.shows(vm)
            for name in ("one", "two"):
                assert livesnap.run("snapshot", "create", "stays", "--name", name).status == 0
            snapshots = livesnap.json("snapshot", "list", "stays")
        shutil.rmtree(livesnap.state_dir)
        for leftover in ("livesnap.json", "spm.lease", "spm.reserve", "hosts", "trash"):
            path = here.storage / leftover
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        for metadata in here.storage.glob("images/*/*.json"):
            metadata.unlink()

        last = vm.last_ack()
        vm.destroy()
        vm.start()
        vm.wait_ready(boots=2)
        vm.wait_agent()
        writer_resumed = vm.wait_acks()
        assert writer_resumed > last

        with vm.libvirt() as machine:
            for target in ("vda", "vdb"):
                machine.blockPull(target)
                eventually(partial(has_no_job, machine, target), timeout_s=60, what="the end of the pull")
            leaves = vm.sources()
            machine.destroy()
            machine.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
        for snapshot in snapshots:
            for disk in snapshot["disks"]:
                (here.storage / disk["path"]).unlink()
        records = examine(here.storage / leaves["vda"]).records
        assert records == tuple(range(records[0], records[-1] + 1))
        assert records[-1] >= writer_resumed
