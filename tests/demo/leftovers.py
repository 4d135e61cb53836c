"""What a run may have left behind, found without trusting anything that the run itself remembers."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tests.bed.process import kill_and_wait, run


def processes(folder: Path) -> dict[int, str]:
    """Return the processes that have this folder on their command line or in their environment, by pid."""
    found = dict(_processes(os.fsencode(folder)))
    found.pop(os.getpid(), None)
    return found


def mounts(folder: Path) -> list[Path]:
    """Return the mount points at or below a folder."""
    points = (Path(line.split()[1]) for line in Path("/proc/self/mounts").read_text().splitlines())
    return [point for point in points if point.is_relative_to(folder)]


def found(folder: Path) -> list[str]:
    """Say in words what is left of a run that had everything below this folder."""
    left = [f"process {pid}: {words}" for pid, words in processes(folder).items()]
    left += [f"mounted: {point}" for point in mounts(folder)]
    return [*left, f"folder: {folder}"] if folder.exists() else left


def remove(folder: Path) -> None:
    """End, unmount and delete all of it; the net below a run whose own cleaning up failed."""
    for pid in processes(folder):
        kill_and_wait(pid, signal.SIGKILL)
    for point in mounts(folder):
        run(["umount", "--lazy", point])
    shutil.rmtree(folder, ignore_errors=True)


def _processes(folder: bytes) -> Iterator[tuple[int, str]]:
    for entry in Path("/proc").glob("[0-9]*"):
        # Gone meanwhile, a thread of the kernel's, or somebody else's: not ours.
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes()
            # A slash or the end must follow: /tmp/ls-ab is no part of /tmp/ls-abc.
            text = b"\0".join((words, (entry / "environ").read_bytes())) + b"\0"
            if folder + b"/" in text or folder + b"\0" in text:
                yield int(entry.name), words.replace(b"\0", b" ").decode(errors="replace")[:100]
