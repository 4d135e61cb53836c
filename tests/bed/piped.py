"""A dump or a save that stands still for as long as a test wants: its file is a pipe that nobody reads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import libvirt

from tests.bed.paths import give
from tests.bed.vm import BedVm
from tests.wait import eventually

CHUNK = 2**20


@contextmanager
def piped(vm: BedVm, folder: Path, call: Callable[[libvirt.virDomain, str], object]) -> Iterator[None]:
    """Let `call` (which is given the machine's handle and a path) write into a pipe while the `with` block runs.

    At its end the pipe is read, so that the call can end too; what it raises is raised then.
    """
    pipe = folder / f"{vm.name}.pipe"
    os.mkfifo(pipe)
    give(pipe, vm.host.owner)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)

    def run() -> None:
        with vm.libvirt() as handle:
            call(handle, str(pipe))

    with ThreadPoolExecutor(1) as pool, vm.libvirt() as looking:
        running = pool.submit(run)
        try:
            eventually(lambda: looking.jobStats(0)["type"] or running.done(), timeout_s=20, what="libvirt's job")
            yield
        finally:
            os.set_blocking(reader, True)
            while os.read(reader, CHUNK):
                pass
            os.close(reader)
            pipe.unlink()
    running.result()
