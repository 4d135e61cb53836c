"""libvirt's XML read and written: disks of every kind, chains, our marks, and definitions that lose nothing."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.eligibility import is_data_disk, refusal
from common.ids import StorageDomainId, derived_id
from common.messaging.reports import AgentState
from hostagent import vm_xml

STORAGE_DOMAIN = StorageDomainId(derived_id("sd"))

PERSISTENT = """\
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web</name>
  <uuid>7afa82a2-1e9b-458e-b2f8-2e5b039e2058</uuid>
  <metadata><app:note xmlns:app='http://example.org/app' text='keep &lt;me&gt;'/></metadata>
  <devices>
    <!-- what the owner wrote -->
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' error_policy='stop' discard='unmap'/>
      <source file='/sd/a.qcow2' startupPolicy='optional'/>
      <backingStore type='file'><format type='qcow2'/><source file='/sd/base.qcow2'/><backingStore/></backingStore>
      <target dev='vda' bus='virtio'/>
      <serial>S1</serial>
    </disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
  </devices>
  <qemu:commandline><qemu:arg value='-snapshot'/></qemu:commandline>
</domain>
"""

LIVE = """\
<domain type='kvm' id='7'>
  <metadata><l:frozen xmlns:l='urn:livesnap:freeze:1' token='h1/2.3/x'/></metadata>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/sd/new.qcow2' index='3'/>
      <backingStore type='file' index='1'>
        <format type='qcow2'/><source file='/sd/a.qcow2'/>
        <backingStore type='file' index='2'><format type='raw'/><source file='/base.img'/><backingStore/></backingStore>
      </backingStore>
      <mirror type='file' job='active-commit'><source file='/sd/elsewhere.qcow2'/></mirror>
      <target dev='vda' bus='virtio'/><alias name='virtio-disk0'/>
    </disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>
  </devices>
</domain>
"""


def locate(path: str) -> tuple[StorageDomainId, str] | None:
    return (STORAGE_DOMAIN, path.removeprefix("/sd/")) if path.startswith("/sd/") else None


def is_encrypted(path: str) -> bool:
    return path.endswith("/crypt")


def disk(inner: str, *, kind: str = "file", device: str = "disk") -> str:
    body = f"<disk type='{kind}' device='{device}'><driver type='qcow2'/>{inner}<target dev='vda' bus='virtio'/></disk>"
    return f"<domain id='1'><devices>{body}</devices></domain>"


def test_sources_and_chains_are_the_disks_own() -> None:
    assert vm_xml.sources(LIVE) == {"vda": "/sd/new.qcow2", "sda": ""}
    assert vm_xml.chains(LIVE) == {"vda": ("/sd/new.qcow2", "/sd/a.qcow2", "/base.img"), "sda": ()}
    assert vm_xml.targets(LIVE) == ("vda", "sda")
    assert vm_xml.leaves(LIVE) == {"vda": ("/sd/new.qcow2", "qcow2")}
    assert vm_xml.aliases(LIVE) == {"vda": "virtio-disk0"}


def test_a_running_vms_disks_are_the_live_ones() -> None:
    system, drive = vm_xml.disks(LIVE, PERSISTENT, locate, is_encrypted)
    assert (system.source, system.persistent_source) == ("/sd/new.qcow2", "/sd/a.qcow2")
    assert (system.storage_domain_id, system.path) == (STORAGE_DOMAIN, "new.qcow2")
    assert (system.device, system.bus, system.format, system.error_policy) == ("disk", "virtio", "qcow2", "")
    assert refusal(system) == ""
    assert refusal(drive) == "disk_cdrom"


def test_a_stopped_vms_disks_are_the_persistent_ones() -> None:
    system, _ = vm_xml.disks("", PERSISTENT, locate, is_encrypted)
    assert system.source == system.persistent_source == "/sd/a.qcow2"
    assert (system.path, system.error_policy) == ("a.qcow2", "stop")
    assert refusal(system) == ""


@pytest.mark.parametrize(
    ("xml", "source", "code"),
    [
        (disk("<source file='/sd/x'/><shareable/>"), "/sd/x", "disk_shareable"),
        (disk("<source file='/sd/x'/><readonly/>"), "/sd/x", "disk_readonly"),
        (disk("<source file='/sd/x'/><transient/>"), "/sd/x", "disk_transient"),
        (disk("<source file='/sd/x'><encryption format='luks'/></source>"), "/sd/x", "disk_encrypted"),
        (disk("<source file='/sd/x'/><encryption format='qcow'/>"), "/sd/x", "disk_encrypted"),
        (disk("<source file='/sd/crypt'/>"), "/sd/crypt", "disk_encrypted"),
        (disk("<source file='/sd/x'><slices><slice/></slices></source>"), "/sd/x", "disk_unsupported"),
        (disk("<source dev='/dev/mapper/x'/>", kind="block"), "/dev/mapper/x", "disk_block_device"),
        (disk("<source dev='/dev/mapper/x'/>", kind="block", device="lun"), "/dev/mapper/x", "disk_direct_lun"),
        (disk("<source protocol='rbd' name='pool/x'/>", kind="network"), "rbd:pool/x", "disk_network"),
        (disk("<source pool='p' volume='v'/>", kind="volume"), "p/v", "disk_libvirt_volume"),
        (disk("<source file='/elsewhere/x'/>"), "/elsewhere/x", "disk_outside_storage_domain"),
        (disk(""), "", "disk_empty"),
        (disk("<source file='/sd/x'/>", device="floppy"), "/sd/x", "disk_floppy"),
    ],
)
def test_what_cannot_be_snapshotted_is_seen(xml: str, source: str, code: str) -> None:
    (found,) = vm_xml.disks(xml, "", locate, is_encrypted)
    assert found.source == source
    assert refusal(found) == code


def test_a_leaf_that_was_a_base_is_reported_by_its_plain_name() -> None:
    odd = disk("<source file='/sd/images/x/../../a.qcow2'/>")
    (found,) = vm_xml.disks(
        odd, odd.replace("images/x/../../", ""), lambda _: (STORAGE_DOMAIN, "a.qcow2"), is_encrypted
    )
    assert found.source == found.persistent_source == "/sd/a.qcow2"
    (unknown,) = vm_xml.disks(odd, odd, lambda _: None, is_encrypted)
    assert unknown.source == "/sd/images/x/../../a.qcow2"


def test_only_the_header_of_a_qcow2_image_of_ours_is_looked_at() -> None:
    """A raw disk's first bytes are its guest's (P8), and what lies elsewhere is refused anyhow."""
    raw = disk("<source file='/sd/crypt'/>").replace("type='qcow2'", "type='raw'")
    elsewhere = disk("<source file='/elsewhere/crypt'/>")
    for xml in (raw, elsewhere):
        (found,) = vm_xml.disks(xml, "", locate, is_encrypted)
        assert not found.encrypted


@pytest.mark.parametrize(
    ("inner", "device", "is_partial"),
    [
        ("<source file='/sd/x'/>", "disk", True),
        ("<source file='/sd/x'/><transient/>", "disk", True),
        ("<source file='/sd/x'/>", "floppy", True),
        ("<source file='/sd/x'/><readonly/>", "floppy", False),
        ("<source file='/sd/x'/><readonly/>", "disk", False),
        ("<source file='/sd/x'/><readonly/>", "cdrom", False),
        ("<source file='/sd/x'/>", "cdrom", False),
        ("", "floppy", False),
    ],
)
def test_a_writable_disk_that_is_left_out_makes_a_snapshot_partial(inner: str, device: str, is_partial: bool) -> None:
    (found,) = vm_xml.disks(disk(inner, device=device), "", locate, is_encrypted)
    assert is_data_disk(found) is is_partial


@pytest.mark.parametrize("read", [vm_xml.disks, vm_xml.chains, vm_xml.sources, vm_xml.leaves, vm_xml.targets])
def test_no_definition_has_nothing(read: object) -> None:
    found = read("", "", locate, is_encrypted) if read is vm_xml.disks else read("")  # type: ignore[operator]
    assert not found
    assert not vm_xml.is_active("")
    assert vm_xml.frozen_mark("") == ""
    assert vm_xml.agent_state("") is AgentState.NO_CHANNEL


def test_only_a_run_has_an_id() -> None:
    assert vm_xml.is_active(LIVE)
    assert not vm_xml.is_active(PERSISTENT)


def test_the_agents_channel() -> None:
    assert vm_xml.agent_state(LIVE) is AgentState.CONNECTED
    assert vm_xml.agent_state(LIVE.replace("state='connected'", "state='disconnected'")) is AgentState.DISCONNECTED
    assert vm_xml.agent_state(PERSISTENT) is AgentState.DISCONNECTED
    assert vm_xml.agent_state(LIVE.replace("guest_agent", "other")) is AgentState.NO_CHANNEL


def test_a_mirror_is_ready_only_when_libvirt_says_so() -> None:
    assert vm_xml.mirror(LIVE, "vda") == ""
    assert vm_xml.mirror(LIVE.replace("job='active-commit'", "job='active-commit' ready='yes'"), "vda") == "yes"
    assert vm_xml.mirror(LIVE, "sda") is None
    assert vm_xml.mirror(LIVE, "vdz") is None


def test_the_mark_is_read_and_written() -> None:
    assert vm_xml.frozen_mark(LIVE) == "h1/2.3/x"
    assert vm_xml.frozen_mark(PERSISTENT) == ""
    assert ElementTree.fromstring(vm_xml.frozen_element("a'<&\">b")).get("token") == "a'<&\">b"


def test_a_snapshot_request_lists_every_disk() -> None:
    root = ElementTree.fromstring(vm_xml.snapshot_xml({"vda": "/sd/<new>&.qcow2"}, ("vda", "vdb", "sda")))
    said = [(entry.get("name"), entry.get("snapshot")) for entry in root.iterfind("./disks/disk")]
    assert said == [("vda", "external"), ("vdb", "no"), ("sda", "no")]
    source, driver = root.find("./disks/disk/source"), root.find("./disks/disk/driver")
    assert source is not None
    assert source.get("file") == "/sd/<new>&.qcow2"
    assert driver is not None
    assert driver.get("type") == "qcow2"


def test_a_new_leaf_takes_the_old_chain_with_it() -> None:
    text = vm_xml.with_sources(PERSISTENT, {"vda": ("/sd/n&w.qcow2", "qcow2"), "vdz": ("/nowhere", "raw")})
    assert vm_xml.leaves(text) == {"vda": ("/sd/n&w.qcow2", "qcow2")}
    assert "backingStore" not in text
    assert "/nowhere" not in text


def test_all_else_in_a_definition_stays() -> None:
    text = vm_xml.with_sources(PERSISTENT, {"vda": ("/sd/new.qcow2", "raw")})
    for kept in (
        "xmlns:qemu=",
        '<qemu:arg value="-snapshot"/>',
        "<!-- what the owner wrote -->",
        "app:note",
        "keep &lt;me&gt;",
        'startupPolicy="optional"',
        'discard="unmap"',
        "<serial>S1</serial>",
    ):
        assert kept in text
    assert vm_xml.leaves(text) == {"vda": ("/sd/new.qcow2", "raw")}
    assert vm_xml.with_sources(text, {}) == text


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=60)


@given(TEXT)
def test_any_path_survives(path: str) -> None:
    assert vm_xml.sources(vm_xml.with_sources(PERSISTENT, {"vda": (path, "qcow2")}))["vda"] == path
    source = ElementTree.fromstring(vm_xml.snapshot_xml({"vda": path}, ("vda",))).find("./disks/disk/source")
    assert source is not None
    assert source.get("file") == path
