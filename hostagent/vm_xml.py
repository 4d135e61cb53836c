"""libvirt's vm XML: disks, chains, agent and our freeze mark read; snapshot requests and definitions written. Pure.

Every reader takes '' for "there is no such definition" and then finds nothing.
"""

import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from xml.dom import minidom
from xml.etree import ElementTree

from common.ids import StorageDomainId
from common.messaging.reports import AgentState, DiskReport

Locate = Callable[[str], tuple[StorageDomainId, str] | None]
IsEncrypted = Callable[[str], bool]

AGENT_CHANNEL = "org.qemu.guest_agent.0"
METADATA_NAMESPACE = "urn:livesnap:freeze:1"

_SOURCE_ATTRIBUTES = {"file": "file", "block": "dev", "dir": "dir", "nvme": "namespace", "vhostuser": "path"}


def is_active(xml: str) -> bool:
    """Tell whether this is the definition of a running vm: only there libvirt writes the run's `id`."""
    return bool(xml) and "id" in _parse(xml).attrib


def disks(live_xml: str, persistent_xml: str, locate: Locate, is_encrypted: IsEncrypted) -> tuple[DiskReport, ...]:
    """Describe the disks of the live definition, or of the persistent one when the vm is not active.

    `source` is that definition's source, `persistent_source` the persistent one's; where `locate` knows it, by its
    plain name. `locate` turns an absolute path into storage domain and relative path, `is_encrypted` looks into the
    header of a qcow2 image there.
    """
    persistent = sources(persistent_xml)
    return tuple(
        _describe(target, disk, persistent.get(target, ""), (locate, is_encrypted))
        for target, disk in _disks(live_xml or persistent_xml)
    )


def targets(xml: str) -> tuple[str, ...]:
    """Return the targets of all disks, CD-ROMs and floppies included, in their order."""
    return tuple(target for target, _ in _disks(xml))


def sources(xml: str) -> dict[str, str]:
    """Return each target's source: a path for files and block devices, a name for the rest, '' for an empty drive."""
    return {target: _source(disk) for target, disk in _disks(xml)}


def leaves(xml: str) -> dict[str, tuple[str, str]]:
    """Return source and format of each target that is a file and not empty, as `with_sources` takes them."""
    files = {target: disk for target, disk in _disks(xml) if disk.get("type", "file") == "file" and _source(disk)}
    return {target: (_source(disk), _attribute(disk, "driver", "type")) for target, disk in files.items()}


def chains(live_xml: str) -> dict[str, tuple[str, ...]]:
    """Return each target's chain of sources, top first, as far as the definition tells it."""
    return {target: tuple(path for path, _ in chain) for target, chain in layers(live_xml).items()}


def layers(xml: str) -> dict[str, tuple[tuple[str, str], ...]]:
    """Return each target's chain as far as the definition tells it, top first: source and format ('' if not said)."""
    return {target: tuple(_layers(disk)) for target, disk in _disks(xml)}


def aliases(live_xml: str) -> dict[str, str]:
    """Return libvirt's device alias (`virtio-disk0`) of each target; QEMU knows its devices by it."""
    found = {target: disk.find("alias") for target, disk in _disks(live_xml)}
    return {target: alias.get("name", "") for target, alias in found.items() if alias is not None}


def error_policies(xml: str) -> dict[str, str]:
    """Return each target's error policy for writes; '' is QEMU's default: `stop` when full, else `report`."""
    return {target: _attribute(disk, "driver", "error_policy") for target, disk in _disks(xml)}


def mirror(live_xml: str, target: str) -> str | None:
    """Return None if no block job copies that disk, else libvirt's word on it: '' at work, 'yes' ready to be completed.

    Only `ready='yes'` counts: the progress numbers of a block job reach their end too early.
    """
    found = [disk.find("mirror") for name, disk in _disks(live_xml) if name == target]
    return next((element.get("ready", "") for element in found if element is not None), None)


def ends_at_reset(xml: str) -> bool:
    """Tell whether a reset of the guest ends QEMU: libvirt then cannot be asked whether the guest powered off."""
    return _parse(xml).findtext("./on_reboot") == "destroy" if xml else False


def agent_state(live_xml: str) -> AgentState:
    """Return what libvirt knows of the guest agent's channel."""
    for target in _parse(live_xml).iterfind("./devices/channel/target") if live_xml else ():
        if target.get("name") == AGENT_CHANNEL:
            return AgentState.CONNECTED if target.get("state") == "connected" else AgentState.DISCONNECTED
    return AgentState.NO_CHANNEL


def qemu_ids(capabilities_xml: str) -> tuple[int, int] | None:
    """Return user and group that libvirt starts QEMU as; None from a daemon that changes no owners (a session's)."""
    for model in _parse(capabilities_xml).iterfind("./host/secmodel"):
        if model.findtext("model") == "dac":
            user, _, group = model.findtext("baselabel", "").replace("+", "").partition(":")
            return (int(user), int(group)) if user.isdecimal() and group.isdecimal() else None
    return None


def has_own_label(persistent_xml: str) -> bool:
    """Tell whether a definition itself says whom its QEMU runs as."""
    labels = _parse(persistent_xml).iterfind("./seclabel") if persistent_xml else ()
    return any(label.get("model") == "dac" for label in labels)


def frozen_mark(live_xml: str) -> str:
    """Return the token of a freeze of ours from the live metadata, '' if there is none."""
    mark = _parse(live_xml).find(f"./metadata/{{{METADATA_NAMESPACE}}}frozen") if live_xml else None
    return "" if mark is None else mark.get("token", "")


def frozen_element(token: str) -> str:
    """Return the metadata element that carries a freeze's token; libvirt adds the namespace."""
    element = ElementTree.Element("frozen", {"token": token})
    return ElementTree.tostring(element, encoding="unicode")


def snapshot_xml(new: Mapping[str, str], all_targets: Iterable[str]) -> str:
    """Ask for the disks in `new` (target to path of the new leaf) to be switched, and for no other.

    Every other disk is listed with snapshot='no': one that is left out is not skipped by libvirt 9.0, which then looks
    for a file of a name of its own making.
    """
    root = ElementTree.Element("domainsnapshot")
    listed = ElementTree.SubElement(root, "disks")
    for target in all_targets:
        if target not in new:
            ElementTree.SubElement(listed, "disk", {"name": target, "snapshot": "no"})
            continue
        disk = ElementTree.SubElement(listed, "disk", {"name": target, "snapshot": "external", "type": "file"})
        ElementTree.SubElement(disk, "driver", {"type": "qcow2"})
        ElementTree.SubElement(disk, "source", {"file": new[target]})
    return ElementTree.tostring(root, encoding="unicode")


def with_sources(persistent_xml: str, leaves: Mapping[str, tuple[str, str]]) -> str:
    """Return the persistent definition with other leaves: target to (absolute path, format).

    Every <backingStore> below such a disk goes, so that libvirt finds the chain itself: with an old one left in place
    libvirt 9.0 builds the chain from it and skips the layers it does not name. Everything else stays as it is, prefixes
    and comments included; a target that the definition does not have is left out.
    """
    with minidom.parseString(persistent_xml) as document:
        for disk in _device_disks(document):
            if leaf := leaves.get(_target_of(disk)):
                _set_leaf(document, disk, *leaf)
        text: str = _root(document).toxml()
    return text


# ---- reading ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _parse(xml: str) -> ElementTree.Element:
    """Parse once what one look at a vm asks about five times; nobody changes the result."""
    return ElementTree.fromstring(xml)


def _disks(xml: str) -> Iterator[tuple[str, ElementTree.Element]]:
    for disk in _parse(xml).iterfind("./devices/disk") if xml else ():
        target = disk.find("target")
        if target is not None:
            yield target.get("dev", ""), disk


def _describe(
    target: str, disk: ElementTree.Element, persistent_source: str, ask: tuple[Locate, IsEncrypted]
) -> DiskReport:
    locate, is_encrypted = ask
    source, image_format = _source(disk), _attribute(disk, "driver", "type")
    source_type = disk.get("type", "file")
    place = locate(source) if source and source_type == "file" else None
    source = _plain(source, locate) if place else source
    return DiskReport(
        target=target,
        device=disk.get("device", "disk"),
        source_type=source_type,
        bus=_attribute(disk, "target", "bus"),
        format=image_format,
        source=source,
        persistent_source=_plain(persistent_source, locate) if place else persistent_source,
        storage_domain_id=place[0] if place else None,
        path=place[1] if place else "",
        shareable=disk.find("shareable") is not None,
        readonly=disk.find("readonly") is not None,
        transient=disk.find("transient") is not None,
        encrypted=disk.find(".//encryption") is not None
        or (place is not None and image_format == "qcow2" and is_encrypted(source)),
        sliced=disk.find(".//slices") is not None,
        error_policy=_attribute(disk, "driver", "error_policy"),
    )


def _plain(path: str, locate: Locate) -> str:
    """Return the plain name of a file whose name has `..` in it, if that is the same file."""
    plain = posixpath.normpath(path) if path.startswith("/") else path
    return plain if plain != path and locate(path) else path


def _attribute(disk: ElementTree.Element, child: str, name: str) -> str:
    found = disk.find(child)
    return "" if found is None else found.get(name, "")


def _source(layer: ElementTree.Element) -> str:
    """Return the source of a disk or of a <backingStore>; only its own child counts, a <mirror> has one too."""
    source = layer.find("source")
    if source is None:
        return ""
    kind = layer.get("type", "file")
    if kind in _SOURCE_ATTRIBUTES:
        return source.get(_SOURCE_ATTRIBUTES[kind], "")
    if kind == "volume":
        return f"{source.get('pool', '')}/{source.get('volume', '')}"
    return f"{source.get('protocol', kind)}:{source.get('name', '')}"


def _layers(disk: ElementTree.Element) -> Iterator[tuple[str, str]]:
    layer: ElementTree.Element | None = disk
    while layer is not None and (source := _source(layer)):
        # A disk says its format in <driver>, a layer below it in <format>.
        yield source, _attribute(layer, "driver" if layer is disk else "format", "type")
        layer = layer.find("backingStore")


# ---- writing ----------------------------------------------------------------------------------------------------


def _children(element: minidom.Element, name: str) -> list[minidom.Element]:
    return [child for child in element.childNodes if isinstance(child, minidom.Element) and child.tagName == name]


def _root(document: minidom.Document) -> minidom.Element:
    return next(child for child in document.childNodes if isinstance(child, minidom.Element))


def _device_disks(document: minidom.Document) -> Iterator[minidom.Element]:
    for devices in _children(_root(document), "devices"):
        yield from _children(devices, "disk")


def _target_of(disk: minidom.Element) -> str:
    return next((target.getAttribute("dev") for target in _children(disk, "target")), "")


def _only_child(document: minidom.Document, disk: minidom.Element, name: str) -> minidom.Element:
    for child in _children(disk, name):
        return child
    made = document.createElement(name)
    disk.appendChild(made)
    return made


def _set_leaf(document: minidom.Document, disk: minidom.Element, path: str, image_format: str) -> None:
    for stale in _children(disk, "backingStore"):
        disk.removeChild(stale)
    _only_child(document, disk, "source").setAttribute("file", path)
    driver = _only_child(document, disk, "driver")
    driver.setAttribute("type", image_format)
    if not driver.getAttribute("name"):
        driver.setAttribute("name", "qemu")
