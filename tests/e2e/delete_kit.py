"""A machine's snapshots as they are deleted, with what each of them must show."""

from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.bed.oracle import content_sha256
from tests.bed.vm import BedVm
from tests.e2e.kit import Livesnap, Place, writer_went_on
from tests.integration.merge_kit import backing_of
from tests.wait import eventually


class Story:
    """One machine's snapshots, with what each of them shows."""

    def __init__(self, here: Place, livesnap: Livesnap, vm: BedVm) -> None:
        self.here, self.livesnap, self.vm = here, livesnap, vm
        self.shown: dict[str, dict[str, str]] = {}

    def take(self, *names: str) -> None:
        """Take snapshots, each after the guest has written."""
        for name in names:
            if self.vm.qemu_pid is not None:
                for disk in self.vm.spec.disks:
                    self.vm.wait_acks(more=2, target=disk.target)
            said = self.livesnap.run("snapshot", "create", self.vm.name, "--name", name)
            assert said.status == 0, said.out + said.err
            self.shown[name] = self.now_shows(name)

    def now_shows(self, name: str) -> dict[str, str]:
        """Return a digest of what each disk of a snapshot shows."""
        taken = self.livesnap.json("snapshot", "show", f"{self.vm.name}/{name}")
        return {disk["target"]: content_sha256(self.here.storage / disk["path"]) for disk in taken["disks"]}

    def delete(self, *names: str, options: tuple[str, ...] = ()) -> Any:
        """Delete snapshots and return the job, which must have gone well."""
        references = [f"{self.vm.name}/{name}" for name in names]
        said = self.livesnap.run("snapshot", "delete", *references, *options, "--json")
        assert said.status == 0, said.out + said.err
        self.check(*names)
        return said.json

    def check(self, *gone: str) -> None:
        """What is gone is gone, what is kept shows what it showed, and no volume is left that nobody owns."""
        for name in gone:
            self.shown.pop(name, None)
        listed = self.livesnap.json("snapshot", "list", self.vm.name)
        assert {each["name"] for each in listed} == set(self.shown)
        assert {each["state"] for each in listed} <= {"ok"}
        assert {name: self.now_shows(name) for name in self.shown} == self.shown
        machine = self.livesnap.shows_on(self.vm, self.vm.sources(persistent=True))
        chained = {self.here.storage / layer["path"] for disk in machine["disks"] for layer in disk["chain"]}
        folders = {path.parent for path in chained if path.parent.parent.name == "images"}
        lying = {path for folder in folders for path in folder.glob("*.qcow2")}
        owned = chained | {self.here.storage / disk["path"] for each in listed for disk in each["disks"]}
        assert lying <= owned, f"volumes without an owner: {lying - owned}"
        for path in lying:
            assert not backing_of(path).startswith("/"), f"{path} has an absolute backing name"
        leaves = {disk["target"]: str(self.here.storage / disk["path"]) for disk in machine["disks"]}
        assert self.vm.sources(persistent=True) == leaves
        if self.vm.qemu_pid is not None:
            # Until it boots again, libvirt may know a leaf by the name that it once found in a header.
            live = {target: str(Path(path).resolve()) for target, path in self.vm.sources().items()}
            assert live == leaves
            for disk in self.vm.spec.disks:
                writer_went_on(self.vm, target=disk.target)

    def wipe(self) -> None:
        """Delete what is left, in one job."""
        left = [each["name"] for each in self.livesnap.json("snapshot", "list", self.vm.name)]
        if left:
            self.delete(*left)


def stopped(livesnap: Livesnap, vm: BedVm) -> None:
    """Pull the plug, and wait until livesnap knows."""
    vm.destroy()
    livesnap.shows(vm, "off")


def boot(livesnap: Livesnap, vm: BedVm) -> None:
    """Boot the machine until its guest writes and its agent answers."""
    boots = vm.console().count("GUEST READY")
    vm.start()
    vm.wait_ready(boots=boots + 1)
    vm.wait_acks()
    vm.wait_agent()
    livesnap.shows(vm)


def submit(story: Story, name: str, bytes_per_s: int = 0) -> Any:
    """Ask for a deletion, again by the same key until an API that was killed is back; return the job."""
    body, key = {"snapshots": [f"{story.vm.name}/{name}"], "bytes_per_s": bytes_per_s}, uuid4().hex
    return eventually(
        lambda: story.livesnap.ask("/v1/snapshots/delete", body, key=key),
        timeout_s=60,
        what=f"a job that deletes {name}",
        interval_s=0.2,
    )


def begin(story: Story, name: str) -> Any:
    """Begin a slow deletion, and return its job once it copies."""
    job = submit(story, name, 2**20)

    def copies() -> bool:
        progress = story.livesnap.job(job["id"])["progress"]
        return bool(progress) and 0 < progress["done_bytes"] < progress["total_bytes"]

    eventually(copies, timeout_s=60, what="some progress", interval_s=0.1)
    return job


def ends_well(story: Story, job: Any, name: str) -> None:
    """Wait for the end of a deletion, which must have gone well."""
    ended = story.livesnap.wait_for_end(job["id"], timeout_s=180)
    assert ended["state"] == "completed", (ended["error"], ended["timeline"])
    story.check(name)
