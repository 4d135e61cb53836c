"""QEMU's answers about its block nodes, in our words. Pure.

QEMU is asked only where libvirt's view cannot be trusted: after libvirtd was killed in the middle of a switch its XML
can name the old leaves while QEMU writes to the new ones.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hostagent.ports import BlockNode

Reply = list[dict[str, Any]]


def block_nodes(named_nodes: Reply, devices: Reply, aliases: Mapping[str, str]) -> tuple[BlockNode, ...]:
    """Return every node that has a file, from `query-named-block-nodes` (flat) and `query-block`.

    A node belongs to a device if its file is in that device's chain; `aliases` (target to libvirt's alias) names the
    device by its target. A node whose file is in no chain has device '': a killed libvirtd left it behind.
    """
    places = {path: (device, depth) for device, depth, path in _chains(devices, aliases)}
    found = []
    for node in named_nodes:
        path = file_name(node.get("file", ""))
        if path:
            device, depth = places.get(path, ("", 0))
            found.append(BlockNode(node_name=node["node-name"], path=path, device=device, depth=depth))
    return tuple(found)


def parent_node(nodes: Iterable[BlockNode], node_name: str) -> str:
    """Return the node one layer below in the same device's chain, '' if there is none: the format node of that file,
    not the node that QEMU or libvirt put below it for the file itself (`#block123`, `libvirt-1-storage`)."""
    known = tuple(nodes)
    for top in known:
        if top.node_name != node_name or not top.device:
            continue
        for node in known:
            below = node.device == top.device and node.depth == top.depth + 1
            if below and not node.node_name.startswith("#") and not node.node_name.endswith("-storage"):
                return node.node_name
    return ""


def file_name(shown: str) -> str:
    """Return the path in a file name as QEMU shows it, which may be `json:{...}`; '' if it names no file."""
    if not shown.startswith("json:"):
        return shown
    try:
        return _file_name_in(json.loads(shown.removeprefix("json:")))
    except (ValueError, RecursionError):
        return ""


def _file_name_in(options: Any) -> str:
    while isinstance(options, dict):
        if isinstance(options.get("filename"), str):
            return str(options["filename"])
        options = options.get("file")
    return ""


def _chains(devices: Reply, aliases: Mapping[str, str]) -> Iterator[tuple[str, int, str]]:
    for device in devices:
        inserted = device.get("inserted")
        if not inserted:
            continue
        name = _target(str(device.get("qdev") or device.get("device") or ""), aliases)
        top = file_name(inserted["file"])
        yield name, 0, top
        image, depth = inserted.get("image", {}).get("backing-image"), 1
        while image:
            yield name, depth, file_name(image["filename"])
            image, depth = image.get("backing-image"), depth + 1


def _target(qdev: str, aliases: Mapping[str, str]) -> str:
    """Return the target whose alias is a part of QEMU's device path (`/machine/peripheral/virtio-disk0/...`)."""
    parts = set(qdev.split("/"))
    return next((target for target, alias in aliases.items() if alias in parts), qdev or "unknown")
