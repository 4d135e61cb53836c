"""Names of backing files: how a volume's header names its base, and what such a name means. Pure: text, no I/O."""

import posixpath
from dataclasses import dataclass

from common.messaging.messages import Format

MAX_DEPTH = 200
"""Volumes in a chain at most. libvirt parses chains up to 200 layers deep; performance ends long before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backing:
    """What a volume's header says of its backing file: its absolute path here, and its format."""

    path: str
    format: Format


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainFile:
    """One file of a chain. `bitmaps` is the number of persistent bitmaps that its header counts."""

    path: str
    format: Format
    bitmaps: int = 0


def backing_name(child: str, parent: str) -> str:
    """Return how the header of `child` names `parent`: relative to its own folder, as hosts may mount the storage
    domain at other places. Both are relative paths below the same root.

    >>> backing_name("images/d/v.qcow2", "vms/web.qcow2")
    '../../vms/web.qcow2'
    """
    return local_name(posixpath.relpath(parent, posixpath.dirname(child) or "."))


def local_name(name: str) -> str:
    """Return a relative file name in a form that no tool takes for an option (`-x`) or a protocol (`nbd:x`)."""
    return f"./{name}" if name.startswith("-") or names_protocol(name) else name


def names_protocol(name: str) -> bool:
    """Tell whether QEMU would take the name for something else than a file: `nbd:…`, `json:{…}`, `file:…`.

    QEMU's rule (block.c, path_has_protocol): a colon before the first slash.
    """
    return ":" in name.split("/", 1)[0]


def resolve(image: str, name: str) -> str:
    """Return the path that a backing name in the header of `image` (an absolute path) means, as QEMU builds it.

    `..` is left in: after a linked folder it is the operating system that says where it leads.
    """
    return posixpath.join(posixpath.dirname(image), name)
