"""One lock per vm, shared by all agent processes of the host: a locked file, so that it dies with its holder.

A command holds it from its first effect to its last. So whoever gets it may take every older intent to freeze, and
every unanswered attempt, for one that nobody works on any more.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.ids import VmId, require_uuid
from common.images import locks


class VmLockFiles:
    """The real `VmLocks` of hostagent/ports.py: call it with a vm.

    with vm_locks(vm) as held:
        if not held: ...   # another thread or process has it
    """

    def __init__(self, folder: Path) -> None:
        """Keep the files in `folder`, which is made if it is missing."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder

    @contextmanager
    def __call__(self, vm: VmId) -> Iterator[bool]:
        """Try to take the lock, without waiting; yields whether it was got. Raises OSError."""
        fd = locks.lock_file(self._path(vm))
        try:
            yield fd is not None
        finally:
            if fd is not None:
                os.close(fd)

    def is_held(self, vm: VmId) -> bool:
        """Tell whether a command is at work on the vm, without ever standing in the way of one."""
        try:
            with locks.opened(self._path(vm), writable=False) as fd:
                return locks.is_held(fd, locks.WHOLE)
        except FileNotFoundError:
            return False

    def _path(self, vm: VmId) -> Path:
        require_uuid(vm)
        return self._folder / f"{vm}.lock"
