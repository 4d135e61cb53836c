"""What others do with the images of a vm: a clone, copy or backup in progress, and snapshots inside of them.

A running QEMU's own lock on its leaf keeps every other writer out, so only a stopped vm's leaf can be somebody else's.
Its backing files may be in use at any time: they are shared by design, and nobody writes to them.
"""

from collections.abc import Iterator

from common.preflight import PreflightLine, refused
from hostagent.operations.deps import LeafPair, View


def of_others(view: View, pair: LeafPair, *, is_active: bool) -> Iterator[PreflightLine]:
    """Whether somebody else uses a leaf, old or new, by file and process, and whether the old one holds snapshots."""
    storage, target = view.deps.storage, pair.target
    if count := storage.internal_snapshots(pair.switch.old):
        # A revert inside the old leaf would change it below the new one.
        message = f"disk {target} of vm {view.vm}: {pair.old} holds {count} internal snapshot(s)"
        yield refused("vm_has_libvirt_snapshots", target, message)
    if not is_active and storage.is_locked(pair.switch.old):
        if view.guest.runtime_id():
            yield refused("vm_state_changed", target, f"vm {view.vm} was started while it was being prepared")
        else:
            yield _in_use(view, target, pair.old)
    if storage.is_locked(pair.switch.new):
        yield _in_use(view, target, pair.new)


def _in_use(view: View, target: str, path: str) -> PreflightLine:
    users = ", ".join(view.deps.image_users(path)) or "a process that this host's /proc does not show"
    return refused("vm_busy", target, f"disk {target} of vm {view.vm}: {path} is in use by {users}")
