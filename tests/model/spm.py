"""The SPM of the model: create and delete in the order of their durable writes (`spm/operations`).

An SPM that dies is replaced at once by a standby, which finds what there is on storage. One that is only stopped
loses its lease here (as it may on NFS) and wakes up later, in the middle of what it did: with the lease it may still
have one change before it looks again.
"""

from collections.abc import Iterator
from typing import Literal

from common.messaging.messages import Kept, Refusal
from tests.model.model import Model
from tests.model.world import SPM, Reply, Sent, SpmWork, Step, World, is_open, volume_of, with_volume

Slot = Literal["spm", "old_spm"]
STALE = Reply("refused", Refusal.STALE)


def spm_steps(model: Model, world: World) -> Iterator[Step]:
    """Yield what the SPM, and one that slept, may do next."""
    if world.spm is None:
        for sent in world.sent:
            if sent.to == SPM:
                step = _begin(model, world, sent)
                if step.world != world:
                    yield step
    else:
        yield _go_on(model, world, "spm", world.spm)
    if world.old_spm is not None:
        step = _go_on(model, world, "old_spm", world.old_spm)
        if model.rules.lease and step.world.old_spm is not None:
            step = step._replace(world=step.world._replace(old_spm=None))
        yield step._replace(text=step.text.replace("SPM:", "old SPM, just awake:"))


def _begin(model: Model, world: World, sent: Sent) -> Step:
    disks = range(len(world.vm.chain))
    volumes = [volume_of(world, sent.job, disk) for disk in disks]
    about = f"SPM: {sent.op}:"
    if model.rules.generation and any(sent.attempt < volume.generation for volume in volumes):
        return Step(f"{about} refused as stale", model.answered(world, sent.job, sent.attempt, STALE))
    if sent.op == "delete":
        work = SpmWork(sent.job, "delete", sent.attempt, "mark", committed=sent.committed)
        return Step(f"{about} begins", world._replace(spm=work))
    if any(volume.meta in ("tombstone", "illegal") for volume in volumes):
        failed = Reply("failed", code="volume_deleted")
        return Step(f"{about} refused: deleted", model.answered(world, sent.job, sent.attempt, failed))
    for disk, volume in zip(disks, volumes, strict=True):
        if volume.meta == "legal" and volume.generation < sent.attempt:
            world = with_volume(world, sent.job, disk, volume._replace(generation=sent.attempt))
    if all(volume.meta == "legal" for volume in volumes):
        return Step(f"{about} is there", model.answered(world, sent.job, sent.attempt, Reply("created")))
    first = next(disk for disk, volume in zip(disks, volumes, strict=True) if volume.meta != "legal")
    return Step(f"{about} begins", world._replace(spm=SpmWork(sent.job, "create", sent.attempt, "link", first)))


def _go_on(model: Model, world: World, slot: Slot, work: SpmWork) -> Step:
    volume = volume_of(world, work.job, work.disk)
    match work.at:
        case "link":
            return _link(model, world, slot, work)
        case "meta":
            return _write_metadata(model, world, slot, work)
        case "take back":
            return _take_back(model, world, slot, work)
        case "mark":
            return _mark(model, world, slot, work)
        case "trash":
            return _trash(model, world, slot, work)
        case "rename":
            return _rename(world, slot, work)
        case "unmark":
            restored = volume._replace(meta="legal") if model.rules.unmark else volume
            world = with_volume(world, work.job, work.disk, restored)
            return _next_disk(model, world, slot, work, f"keeps the volume ({work.kept[-1]}), legal again")
        case _:
            assert work.at == "tombstone"
            gone = volume._replace(meta="tombstone" if model.rules.tombstone else "", data="")
            if not model.rules.generation and not model.rules.tombstone:
                gone = gone._replace(generation=0)
            world = with_volume(world, work.job, work.disk, gone)
            return _next_disk(model, world, slot, work._replace(kept=(*work.kept, "")), "writes the tombstone")


def _working(world: World, slot: Slot, work: SpmWork | None) -> World:
    return world._replace(spm=work) if slot == "spm" else world._replace(old_spm=work)


def _letter(world: World, work: SpmWork) -> str:
    return world.jobs[work.job].new


def _is_used(model: Model, world: World, work: SpmWork) -> bool:
    """Tell whether the image lock is refused: for every use, backing files included."""
    letter = _letter(world, work)
    if not model.rules.lock_sees_backing:
        chain, loose = world.vm.chain[work.disk], world.vm.loose[work.disk]
        return world.vm.at >= 0 and (chain.startswith(letter) or letter in loose)
    return is_open(world.vm, letter, work.disk)


def _link(model: Model, world: World, slot: Slot, work: SpmWork) -> Step:
    volume = volume_of(world, work.job, work.disk)
    if volume.file != "there":
        made = volume._replace(file="there", data="")
        return Step(
            "SPM: makes the empty file",
            _working(with_volume(world, work.job, work.disk, made), slot, work._replace(at="meta", fresh=True)),
        )
    if not model.rules.link:
        # rename(2): the name now means another file, and whoever had the first one open has a deleted one.
        made = volume._replace(file="trash")
        return Step(
            "SPM: renames its empty file over the one that is there",
            _working(with_volume(world, work.job, work.disk, made), slot, None),
        )
    if _is_used(model, world, work) or volume.data:
        failed = Reply("failed", code="volume_exists")
        return Step(
            "SPM: finds a file that is not what was asked for",
            _working(model.answered(world, work.job, work.attempt, failed), slot, None),
        )
    return Step("SPM: finds the file there, unfinished", _working(world, slot, work._replace(at="meta", fresh=False)))


def _write_metadata(model: Model, world: World, slot: Slot, work: SpmWork) -> Step:
    volume = volume_of(world, work.job, work.disk)
    if not volume.meta:
        made = volume._replace(meta="legal", generation=work.attempt)
        return _next_disk(model, with_volume(world, work.job, work.disk, made), slot, work, "writes the metadata")
    text = "SPM: finds metadata that is not its own"
    if work.fresh:
        return Step(f"{text}, will take its file back", _working(world, slot, work._replace(at="take back")))
    return Step(text, _failed(model, world, slot, work))


def _take_back(model: Model, world: World, slot: Slot, work: SpmWork) -> Step:
    """Remove what this creation made, and metadata that says what its own would, if nobody uses the file."""
    volume = volume_of(world, work.job, work.disk)
    if volume.file != "there" or volume.data or _is_used(model, world, work):
        return Step("SPM: leaves the file, which is used", _failed(model, world, slot, work))
    meta = "" if volume.meta == "legal" and volume.generation == work.attempt else volume.meta
    world = with_volume(world, work.job, work.disk, volume._replace(file="", meta=meta))
    return Step("SPM: takes its file back", _failed(model, world, slot, work))


def _failed(model: Model, world: World, slot: Slot, work: SpmWork) -> World:
    failed = Reply("failed", code="volume_exists")
    return _working(model.answered(world, work.job, work.attempt, failed), slot, None)


def _mark(model: Model, world: World, slot: Slot, work: SpmWork) -> Step:
    volume = volume_of(world, work.job, work.disk)
    if volume.meta == "tombstone":
        world = with_volume(
            world, work.job, work.disk, volume._replace(generation=max(volume.generation, work.attempt))
        )
        return _next_disk(model, world, slot, work._replace(kept=(*work.kept, "")), "finds its tombstone")
    if volume.file != "there":
        world = with_volume(world, work.job, work.disk, volume._replace(generation=work.attempt))
        return Step("SPM: there is no file (any more)", _working(world, slot, work._replace(at="tombstone")))
    meta = "illegal" if model.rules.illegal_mark else volume.meta
    marked = volume._replace(meta=meta, generation=work.attempt)
    world = with_volume(world, work.job, work.disk, marked)
    return Step("SPM: marks the volume illegal", _working(world, slot, work._replace(at="trash")))


def _trash(model: Model, world: World, slot: Slot, work: SpmWork) -> Step:
    volume = volume_of(world, work.job, work.disk)
    if volume.file != "there":
        failed = Reply("failed", code="volume_not_found")
        return Step(
            "SPM: the file has gone", _working(model.answered(world, work.job, work.attempt, failed), slot, None)
        )
    why = ""
    if (model.rules.image_lock and _is_used(model, world, work)) or _has_children(world, work):
        why = Kept.IN_USE
    elif model.rules.empty and volume.data and not work.committed:
        why = Kept.NOT_EMPTY
    if why:
        kept = work._replace(at="unmark", kept=(*work.kept, why))
        return Step(f"SPM: does not delete: {why}", _working(world, slot, kept))
    if model.rules.lock_held:
        return _rename(world, slot, work)
    return Step("SPM: gets the image lock, and lets go of it", _working(world, slot, work._replace(at="rename")))


def _has_children(world: World, work: SpmWork) -> bool:
    """Tell whether another job's volume stands on this one."""
    letter, disks = _letter(world, work), len(world.vm.chain)
    return any(
        other.old == letter and world.volumes[number * disks + work.disk].meta in ("legal", "illegal")
        for number, other in enumerate(world.jobs)
    )


def _rename(world: World, slot: Slot, work: SpmWork) -> Step:
    volume = volume_of(world, work.job, work.disk)
    world = with_volume(world, work.job, work.disk, volume._replace(file="trash"))
    return Step(
        "SPM: moves the volume to the trash, its lock held", _working(world, slot, work._replace(at="tombstone"))
    )


def _next_disk(model: Model, world: World, slot: Slot, work: SpmWork, text: str) -> Step:
    """Go on with the next disk that is not done yet, or answer."""
    for disk in range(work.disk + 1, len(world.vm.chain)):
        if work.op == "delete" or volume_of(world, work.job, disk).meta != "legal":
            at = "link" if work.op == "create" else "mark"
            return Step(f"SPM: {text}", _working(world, slot, work._replace(disk=disk, at=at)))
    reply = Reply("created") if work.op == "create" else Reply("deleted", kept=work.kept)
    world = model.tidied(model.answered(_working(world, slot, None), work.job, work.attempt, reply))
    return Step(f"SPM: {text}, and answers", world)
