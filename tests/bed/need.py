"""Which tools the bed needs, and in plain words what is missing."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

#: Debian keeps daemons and file system tools where an ordinary user's PATH does not look.
SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"))


def find_tool(name: str) -> str | None:
    """Return the full path of a program, looking in the administrator's folders as well; None if it is not there."""
    return shutil.which(name, path=SEARCH_PATH)


def tool(name: str) -> str:
    """Return the full path of a program. Raises FileNotFoundError that names it."""
    found = find_tool(name)
    if found is None:
        raise FileNotFoundError(f"the test bed needs the program {name!r}, which is not installed")
    return found


def postgres_bin() -> Path | None:
    """Return the newest installed PostgreSQL's folder of programs (Debian does not put `initdb` on the PATH)."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if found:
        return max(found, key=lambda path: float(path.parent.name))
    on_path = find_tool("initdb")
    return Path(on_path).parent if on_path else None


def user_exists(name: str) -> bool:
    """Say whether the machine knows a user of this name."""
    return any(entry.pw_name == name for entry in pwd.getpwall())


def need(*wanted: str) -> str | None:
    """Return why the bed cannot run with what is installed, or None if everything is there.

    A word is a program's name, or one of `root`, `loop` (loop devices), `fuse` (a file system that is a process),
    `libvirt` (the Python binding), `browser` (a headless Chromium), `rabbitmq`, `postgres`, `guest` (all that building
    and running a guest takes).
    """
    reasons = [reason for word in wanted for reason in _reasons(word)]
    return "; ".join(dict.fromkeys(reasons)) or None


GUEST_TOOLS = (
    *("libvirtd", "qemu-system-x86_64", "qemu-img", "busybox", "qemu-ga", "gcc", "cpio", "depmod", "ldd", "lz4"),
    *("apt-get", "dpkg", "mke2fs", "e2fsck", "dumpe2fs", "debugfs", "setpriv"),
)


def _reasons(word: str) -> Iterator[str]:
    special = _SPECIAL.get(word)
    if special is not None:
        yield from special()
    elif find_tool(word) is None:
        yield f"{word} is not installed"


def _root() -> Iterator[str]:
    if os.geteuid() != 0:
        yield "root is needed"


def _loop() -> Iterator[str]:
    yield from _root()
    if not Path("/dev/loop-control").exists():
        yield "there are no loop devices (no /dev/loop-control)"


def _fuse() -> Iterator[str]:
    yield from _root()
    yield from _reasons("fusermount3")
    if not Path("/dev/fuse").exists():
        yield "there is no /dev/fuse"


def _libvirt() -> Iterator[str]:
    if importlib.util.find_spec("libvirt") is None:
        yield "the Python binding of libvirt is not installed"


BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def browser() -> str | None:
    """Return the program of a headless Chromium, None if there is none."""
    return next((found for name in BROWSERS if (found := find_tool(name))), None)


def _browser() -> Iterator[str]:
    if browser() is None:
        yield "no Chromium is installed"


def _rabbitmq() -> Iterator[str]:
    yield from _reasons("rabbitmq-server")
    yield from _reasons("epmd")


def _postgres() -> Iterator[str]:
    if postgres_bin() is None:
        yield "PostgreSQL's initdb is not installed"
    if os.geteuid() == 0 and not user_exists("postgres"):
        yield "there is no user postgres, and PostgreSQL refuses to run as root"


def _guest() -> Iterator[str]:
    yield from _libvirt()
    for name in GUEST_TOOLS:
        yield from _reasons(name)


_SPECIAL: dict[str, Callable[[], Iterator[str]]] = {
    "root": _root,
    "loop": _loop,
    "fuse": _fuse,
    "libvirt": _libvirt,
    "browser": _browser,
    "rabbitmq": _rabbitmq,
    "postgres": _postgres,
    "guest": _guest,
}
