"""The freeze guard as a process, with a real guest that it has to thaw."""

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import NotReady
from common.ids import VmId
from hostagent.guard import AGAIN_AFTER_S
from hostagent.guard_client import GuardClient
from tests.bed.disks import make_disk
from tests.bed.host import IsolatedHost
from tests.bed.paths import short_dir
from tests.bed.process import CLEAN_ENV
from tests.bed.vm import BedVm, define_vm
from tests.bed.vm_spec import DiskSpec, VmSpec
from tests.integration.host_kit import ROOT, GuardProcess
from tests.wait import eventually

pytestmark = [pytest.mark.needs("libvirtd", "qemu-img", "libvirt"), pytest.mark.xdist_group("guard")]

TOKEN = "h1/1.2/abc"
LONG_MS = 60_000


class Scene:
    """A host, a guest whose writer never stops, and a guard."""

    def __init__(self, root: Path, host: IsolatedHost) -> None:
        disk = DiskSpec(path=make_disk(host.dir / "vms/disk.qcow2", owner=host.owner))
        self.host = host
        self.vm: BedVm = define_vm(host, VmSpec(name="web", disks=(disk,)))
        self.vm.start()
        self.vm.wait_ready()
        self.vm.wait_agent()
        self.id = VmId(self.vm.uuid)
        self.environment = {
            **CLEAN_ENV,
            "LIVESNAP_LIBVIRT_URI": host.uri,
            "LIVESNAP_STATE_DIR": str(root / "state"),
        }
        self.guard = GuardProcess(root, self.environment)
        self.client = GuardClient(self.guard.socket)

    def raw_arm(self, limit_ms: int = LONG_MS) -> socket.socket:
        """Arm as an agent does whose connection the test can end."""
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        link.settimeout(5)
        link.connect(str(self.guard.socket))
        link.send(f"arm {self.id} {TOKEN} {limit_ms}".encode())
        assert link.recv(100) == b"armed"
        return link

    def wait_until_it_has_fired(self) -> None:
        """Wait for the guard's thaw, and until its two further ones are over, of which nothing is said."""
        eventually(lambda: "guard_thawed" in self.guard.said(), timeout_s=10, what="the guard's thaw")
        over = time.monotonic() + 2 * sum(AGAIN_AFTER_S)
        eventually(lambda: time.monotonic() > over, timeout_s=5, what="the guard's last thaw")

    def is_thawed(self) -> bool:
        """Tell whether the agent says so; a guest that was thawed also writes."""
        return self.vm.freeze_status() == "thawed"

    def wait_thawed(self, timeout_s: float = 10) -> None:
        """Wait until the guest's writer goes on."""
        self.vm.wait_acks(more=2, timeout_s=timeout_s)
        assert self.is_thawed()


@pytest.fixture(scope="module")
def module_scene() -> Iterator[Scene]:
    with short_dir() as root, IsolatedHost("a", root) as host:
        yield Scene(root, host)


@pytest.fixture
def scene(module_scene: Scene) -> Iterator[Scene]:
    with module_scene.guard:
        yield module_scene
        module_scene.client.close()
    module_scene.vm.thaw()


def test_a_disarmed_guard_does_nothing(scene: Scene) -> None:
    scene.client.arm(scene.id, TOKEN, LONG_MS)
    assert scene.vm.freeze() == 1
    assert scene.client.disarm(scene.id, TOKEN) is False
    scene.client.arm(scene.id, "another", LONG_MS)
    assert scene.client.disarm(scene.id, "another") is False
    assert not scene.is_thawed()
    assert "guard_fires" not in scene.guard.said()


def test_the_limit_thaws_and_the_late_agent_hears_of_it(scene: Scene) -> None:
    scene.client.arm(scene.id, TOKEN, 300)
    scene.vm.freeze()
    scene.wait_thawed()
    assert scene.client.disarm(scene.id, TOKEN) is True
    assert scene.client.disarm(scene.id, TOKEN) is True


def test_a_new_limit_replaces_the_old_one(scene: Scene) -> None:
    scene.client.arm(scene.id, TOKEN, LONG_MS)
    scene.vm.freeze()
    scene.client.arm(scene.id, TOKEN, 1)
    scene.wait_thawed()
    with pytest.raises(NotReady) as fired:
        scene.client.arm(scene.id, TOKEN, LONG_MS)
    assert fired.value.code == "guard_unavailable"
    assert scene.client.disarm(scene.id, TOKEN) is True


def test_an_agent_that_freezes_after_its_limit_and_dies(scene: Scene) -> None:
    """It stood still between its arming and its freeze, so that the guard's thaw came too early."""
    link = scene.raw_arm(100)
    scene.wait_until_it_has_fired()
    scene.vm.freeze()
    link.close()
    scene.wait_thawed()


def test_a_late_agent_that_dies_between_its_disarm_and_its_thaw(scene: Scene) -> None:
    link = scene.raw_arm(100)
    scene.wait_until_it_has_fired()
    scene.vm.freeze()
    link.send(b"disarm")
    assert link.recv(100) == b"fired"
    link.close()
    scene.wait_thawed()


def test_a_dead_agents_guest_is_thawed(scene: Scene) -> None:
    link = scene.raw_arm()
    scene.vm.freeze()
    link.close()
    scene.wait_thawed()


def test_an_agent_that_dies_between_disarm_and_thaw(scene: Scene) -> None:
    link = scene.raw_arm()
    scene.vm.freeze()
    link.send(b"disarm")
    assert link.recv(100) == b"quiet"
    link.close()
    scene.wait_thawed()


def test_an_agent_that_says_good_bye_is_done(scene: Scene) -> None:
    scene.client.arm(scene.id, TOKEN, LONG_MS)
    scene.client.disarm(scene.id, TOKEN)
    scene.vm.freeze()
    scene.client.close()
    scene.client.arm(scene.id, TOKEN, LONG_MS)
    assert scene.client.disarm(scene.id, TOKEN) is False
    assert not scene.is_thawed()
    assert "agent_lost" not in scene.guard.said()


def test_a_freeze_that_completes_after_the_agents_death_is_thawed(scene: Scene) -> None:
    """While QEMU stands still the freeze is under way and cannot complete; its agent dies, and the guard fires."""
    pid = scene.vm.qemu_pid
    assert pid is not None
    link, freezing = scene.raw_arm(), threading.Thread(target=scene.vm.freeze)
    os.kill(pid, signal.SIGSTOP)
    try:
        freezing.start()
        link.close()
        eventually(lambda: "guard_fires" in scene.guard.said(), timeout_s=5, what="the guard")
    finally:
        os.kill(pid, signal.SIGCONT)
    freezing.join(10)
    eventually(lambda: "filesystems=1" in scene.guard.said(), timeout_s=10, what="the thaw of the late freeze")
    scene.wait_thawed()


def test_agent_and_libvirtd_die_together(scene: Scene) -> None:
    link = scene.raw_arm()
    scene.vm.freeze()
    scene.host.kill9()
    link.close()
    eventually(lambda: "guard_thaw_failed" in scene.guard.said(), timeout_s=5, what="a thaw in vain")
    scene.host.start()
    scene.wait_thawed()


def test_a_guard_that_is_told_to_end_thaws_first(scene: Scene) -> None:
    link = scene.raw_arm()
    scene.vm.freeze()
    scene.guard.stop()
    scene.wait_thawed()
    assert "guard_stopping" in scene.guard.said()
    assert "guard_ended" in scene.guard.said()
    link.close()


def test_a_dead_guard_cannot_be_armed_and_cannot_say(scene: Scene) -> None:
    scene.client.arm(scene.id, TOKEN, LONG_MS)
    scene.guard.kill9()
    assert scene.client.disarm(scene.id, TOKEN) is True
    with pytest.raises(NotReady) as down:
        scene.client.arm(scene.id, TOKEN, LONG_MS)
    assert down.value.code == "guard_unavailable"
    scene.guard.start()
    scene.client.arm(scene.id, TOKEN, LONG_MS)
    assert scene.client.disarm(scene.id, TOKEN) is False


def test_a_guard_without_libvirt_takes_nothing_on(scene: Scene) -> None:
    scene.host.kill9()
    try:
        # The keeper looks for itself every 5 s, should libvirt's own word be missed.
        eventually(lambda: "libvirt_lost" in scene.guard.said(), timeout_s=20, what="the guard to notice")
        with pytest.raises(NotReady):
            scene.client.arm(scene.id, TOKEN, LONG_MS)
    finally:
        scene.host.start()


@pytest.mark.parametrize("message", [b"", b"disarm", b"arm x y z", b"arm ../x t 5", b"\xff\xfe", b"x" * 5000])
def test_nonsense_harms_nobody(scene: Scene, message: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
        link.connect(str(scene.guard.socket))
        link.send(message)
    scene.client.arm(scene.id, TOKEN, LONG_MS)
    assert scene.client.disarm(scene.id, TOKEN) is False


def test_there_is_one_guard_and_its_socket_is_private(scene: Scene) -> None:
    command = [sys.executable, "-m", "hostagent.guard"]
    second = subprocess.run(command, cwd=ROOT, env=scene.environment, capture_output=True, check=False, timeout=20)
    assert second.returncode == 1
    assert b"another guard runs" in second.stderr
    assert stat.S_IMODE(scene.guard.socket.stat().st_mode) == 0o600
    scene.client.arm(scene.id, TOKEN, LONG_MS)
    assert scene.client.disarm(scene.id, TOKEN) is False
