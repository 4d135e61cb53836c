"""Everything that the story needs: an isolated libvirtd, livesnap, and guests whose writers never stop."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import libvirt

from tests.bed.disks import make_disk
from tests.bed.guest_image import guest_image
from tests.bed.process import ToolFailed
from tests.bed.small_fs import SmallFs
from tests.bed.vm import BedVm, define_vm
from tests.bed.vm_spec import AgentMode, DiskSpec, VmSpec
from tests.demo.command_line import Installed
from tests.demo.teller import Teller
from tests.e2e.full_disk import MIN_FREE, FullDisk, full_disk
from tests.e2e.kit import Place

BOOT_LIMIT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Full:
    """The small storage domain and the guest on it."""

    small: FullDisk
    db1: BedVm


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What the chapters work with. `full` is the reason in words where no file system can be mounted."""

    teller: Teller
    here: Place
    livesnap: Installed
    web1: BedVm
    mail1: BedVm
    full: Full | str


@contextmanager
def open_stage(teller: Teller, here: Place) -> Iterator[Stage]:
    """Start everything on this host; yield once every guest writes and livesnap knows them all."""
    with ExitStack() as stack:
        _introduce(teller, here)
        web1, mail1 = _with_a_shared_disk(here), _guest(here, "mail1", ga="none")
        full = _full(stack, here)
        on_small = full.small.option if isinstance(full, Full) else ()
        settings = MIN_FREE if isinstance(full, Full) else {}
        livesnap = stack.enter_context(Installed(teller, here, options=on_small, environment=settings))
        teller.show(f"$ export LIVESNAP_STATE_DIR={livesnap.state_dir}")
        guests = [web1, mail1, *([full.db1] if isinstance(full, Full) else [])]
        for vm in guests:
            vm.wait_ready(timeout_s=BOOT_LIMIT_S)
            vm.wait_acks(timeout_s=BOOT_LIMIT_S)
            if vm.spec.ga == "normal":
                vm.wait_agent()
            livesnap.know(vm)
        yield Stage(teller=teller, here=here, livesnap=livesnap, web1=web1, mail1=mail1, full=full)


def _introduce(teller: Teller, here: Place) -> None:
    who = "root" if os.geteuid() == 0 else "an ordinary user"
    with here.host.connect() as connection:
        versions = [_dotted(connection.getVersion()), _dotted(connection.getLibVersion())]
    teller.say(
        f"livesnap takes snapshots of running machines. Here as {who}, on real guests: QEMU {versions[0]} and an"
        f" isolated libvirtd {versions[1]}, everything below {here.root}. In each guest a writer stores a numbered"
        " record every 20 ms and, when its fsync has returned, says so on the console; it does not stop for anything in"
        " this story."
    )
    guest_image()


def _dotted(version: int) -> str:
    return f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}"


def _guest(here: Place, name: str, *extra: DiskSpec, ga: AgentMode = "normal") -> BedVm:
    disk = DiskSpec(path=make_disk(here.storage / f"{name}.qcow2", owner=here.host.owner))
    vm = define_vm(here.host, VmSpec(name=name, disks=(disk, *extra), ga=ga))
    vm.start()
    return vm


def _with_a_shared_disk(here: Place) -> BedVm:
    path = make_disk(here.storage / "quorum.raw", fs=None, format="raw", owner=here.host.owner)
    return _guest(here, "web1", DiskSpec(path=path, format="raw", target="vdb", shareable=True))


def _full(stack: ExitStack, here: Place) -> Full | str:
    reason = SmallFs.reason()
    if reason:
        return f"it needs a small file system of its own, and cannot mount one: {reason}"
    try:
        small = stack.enter_context(full_disk(here.root, here.host))
    except ToolFailed as refused:
        return f"it needs a small file system of its own, and mounting one failed: {refused}"
    return Full(small=small, db1=small.guest("db1"))


def is_running(vm: BedVm) -> bool:
    """Tell whether the machine's CPUs run."""
    return bool(vm.state()[0] == libvirt.VIR_DOMAIN_RUNNING)


def last_words(folder: Path, *, lines: int = 12) -> Iterator[tuple[str, str]]:
    """Yield the name and the end of every log of a run that is not empty."""
    for path in sorted([*folder.rglob("*.log"), *folder.rglob("*.out")]):
        text = path.read_text(errors="replace").rstrip().splitlines()
        if text:
            yield str(path.relative_to(folder)), "\n".join(line[:300] for line in text[-lines:])
