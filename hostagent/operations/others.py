"""What others do with the images of a vm: a clone, copy or backup in progress, and snapshots inside of them.

A running QEMU's own lock on its leaf keeps every other writer out, so only a stopped vm's leaf can be somebody else's.
Its backing files may be in use at any time: they are shared by design, and nobody writes to them.
"""

from common.errors import RequestRefused
from hostagent.operations.deps import LeafPair, Work


def require_images_free(work: Work, *, is_active: bool) -> None:
    """Raise RequestRefused: vm_busy, naming file and process, if somebody else uses a leaf, old or new;
    vm_has_libvirt_snapshots if an old leaf holds snapshots of its own; vm_state_changed if the vm itself has been
    started meanwhile. Changes nothing."""
    storage = work.deps.storage
    for pair in work.disks:
        _require_no_snapshots(work, pair)
        if not is_active and storage.is_locked(pair.switch.old):
            if work.guest.runtime_id():
                raise RequestRefused("vm_state_changed", f"vm {work.vm} was started while it was being prepared")
            raise _in_use(work, pair.target, pair.old)
        if storage.is_locked(pair.switch.new):
            raise _in_use(work, pair.target, pair.new)


def _in_use(work: Work, target: str, path: str) -> RequestRefused:
    users = ", ".join(work.deps.image_users(path)) or "a process that this host's /proc does not show"
    return RequestRefused("vm_busy", f"disk {target} of vm {work.vm}: {path} is in use by {users}")


def _require_no_snapshots(work: Work, pair: LeafPair) -> None:
    """A revert inside the old leaf would change it below the new one."""
    if count := work.deps.storage.internal_snapshots(pair.switch.old):
        message = f"disk {pair.target} of vm {work.vm}: {pair.old} holds {count} internal snapshot(s)"
        raise RequestRefused("vm_has_libvirt_snapshots", message)
