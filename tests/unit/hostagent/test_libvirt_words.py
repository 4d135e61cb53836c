"""libvirt's numbers in our words, and QEMU's answers: every case that was measured (hypervisor.md, section 2)."""

import pytest

from common.errors import HypervisorError, OutcomeUnknown
from common.messaging.reports import VmState
from hostagent.block_nodes import Reply, block_nodes, file_name, parent_node
from hostagent.libvirt_errors import LibvirtError, translated
from hostagent.vm_state import job_kind, moved_away, vm_state


def code_of(number: int, origin: int, text: str) -> str:
    """Return our code, '?' for an unknown outcome."""
    said = LibvirtError(number=number, origin=origin, text=text)
    error = translated(said, action="switching", vm="v", refused="pivot_failed")
    assert text in error.message
    return "?" if isinstance(error, OutcomeUnknown) else error.code


@pytest.mark.parametrize(
    ("number", "origin", "text", "code"),
    [
        (42, 10, "Domain not found", "vm_not_found"),
        (55, 10, "domain is not running", "vm_state_changed"),
        (83, 10, "disk 'vda' already in active block job", "vm_busy"),
        (84, 10, "disk 'vda' already in active block job", "pivot_failed"),
        (67, 10, "mismatch between configured type", "pivot_failed"),
        (74, 10, "QEMU guest agent is not configured", "pivot_failed"),
        (1, 10, "internal error: unable to execute QEMU command 'blockdev-add': Failed to get lock", "pivot_failed"),
        (1, 10, "unable to execute QEMU agent command 'guest-fsfreeze-freeze': hook has failed", "pivot_failed"),
        (1, 10, "internal error: End of file from qemu monitor", "?"),
        (1, 10, "End of file from agent socket", "?"),
        (1, 7, "client socket is closed", "?"),
        (38, 7, "End of file while reading data: Input/output error", "?"),
        (38, 10, "Unable to write to monitor: Broken pipe", "?"),
        (9, 10, "domain is no longer running", "?"),
        (68, 0, "cannot acquire state change lock", "?"),
        (86, 10, "Guest agent not available for now", "?"),
        (9999, 10, "something new", "?"),
    ],
)
def test_errors(number: int, origin: int, text: str, code: str) -> None:
    assert code_of(number, origin, text) == code


def test_an_unknown_outcome_is_still_the_hypervisors() -> None:
    assert issubclass(OutcomeUnknown, HypervisorError)


@pytest.mark.parametrize(
    ("state", "reason", "word"),
    [
        (1, 1, VmState.RUNNING),
        (1, 5, VmState.RUNNING),  # the reason that a resume after an I/O error leaves behind
        (3, 1, VmState.PAUSED),
        (3, 5, VmState.PAUSED_IO_ERROR),
        (3, 2, VmState.PAUSED_MIGRATION),
        (3, 3, VmState.SAVING),
        (3, 4, VmState.DUMPING),
        (3, 11, VmState.STARTING),
        (4, 1, VmState.STOPPING),
        (5, 3, VmState.OFF),
        (6, 1, VmState.CRASHED),
        (7, 0, VmState.PMSUSPENDED),
        (0, 0, VmState.UNKNOWN),
        (99, 5, VmState.UNKNOWN),
    ],
)
def test_states(state: int, reason: int, word: VmState) -> None:
    assert vm_state(state, reason) is word


def test_jobs() -> None:
    assert job_kind(4) == job_kind(5) == "migration"
    assert job_kind(2) == "save"
    assert job_kind(99) == "job"


def test_only_off_and_migrated_has_moved_away() -> None:
    assert moved_away(5, 4)
    assert not any(moved_away(*state) for state in ((5, 1), (5, 0), (3, 4), (1, 4)))


# ---- block nodes ----------------------------------------------------------------------------------------------------

DEEP = 'json:{"driver":"qcow2","file":{"driver":"file","filename":"/s/base"}}'
DEVICES: Reply = [
    {
        "qdev": "/machine/peripheral/virtio-disk0/virtio-backend",
        "inserted": {
            "file": "/s/new",
            "image": {
                "filename": "/s/new",
                "backing-image": {"filename": "/s/old", "backing-image": {"filename": DEEP}},
            },
        },
    },
    {"qdev": "sata0-0-0", "device": ""},
]
NAMED: Reply = [
    {"node-name": "libvirt-3-format", "file": "/s/new"},
    {"node-name": "libvirt-3-storage", "file": "/s/new"},
    {"node-name": "#block77", "file": "/s/old"},
    {"node-name": "libvirt-2-format", "file": "/s/old"},
    {"node-name": "libvirt-1-format", "file": DEEP},
    {"node-name": "libvirt-9-format", "file": "/s/leaked"},
    {"node-name": "null", "file": ""},
]


def test_nodes_stand_in_their_devices_chain() -> None:
    nodes = {node.node_name: node for node in block_nodes(NAMED, DEVICES, {"vda": "virtio-disk0", "sda": "sata0-0-0"})}
    assert "null" not in nodes
    places = {name: (node.device, node.depth, node.path) for name, node in nodes.items()}
    assert places["libvirt-3-format"] == ("vda", 0, "/s/new")
    assert places["libvirt-3-storage"] == ("vda", 0, "/s/new")
    assert places["libvirt-2-format"] == ("vda", 1, "/s/old")
    assert places["libvirt-1-format"] == ("vda", 2, "/s/base")
    assert places["libvirt-9-format"] == ("", 0, "/s/leaked")


def test_the_parent_is_the_layer_below_and_not_its_file() -> None:
    nodes = block_nodes(NAMED, DEVICES, {"vda": "virtio-disk0"})
    assert parent_node(nodes, "libvirt-3-format") == "libvirt-2-format"
    assert parent_node(nodes, "libvirt-1-format") == ""
    assert parent_node(nodes, "libvirt-9-format") == ""
    assert parent_node(nodes, "no such node") == ""


def test_an_alias_is_a_whole_part_of_the_path() -> None:
    devices = [{**DEVICES[0], "qdev": "/machine/peripheral/virtio-disk10/virtio-backend"}]
    aliases = {"vda": "virtio-disk1", "vdk": "virtio-disk10"}
    assert block_nodes(NAMED, devices, aliases)[0].device == "vdk"
    assert block_nodes(NAMED, devices, {})[0].device == devices[0]["qdev"]


@pytest.mark.parametrize(
    ("shown", "path"),
    [
        ("/s/plain", "/s/plain"),
        (DEEP, "/s/base"),
        ("json:{broken", ""),
        ('json:{"driver":"null-co"}', ""),
        ('json:{"file":"a node"}', ""),
        ("json:" + "[" * 100_000, ""),
        ("", ""),
    ],
)
def test_file_names(shown: str, path: str) -> None:
    assert file_name(shown) == path
