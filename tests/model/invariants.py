"""What must hold in every state of the model, whatever has happened: the promises, in the model's words."""

from enum import StrEnum
from typing import NamedTuple

from manager.flows.snapshot_states import NeedsOperator
from tests.model.model import Model
from tests.model.world import NOWHERE, Handler, Job, World, is_open, job_of, volume_of


class Kind(StrEnum):
    """The kinds of violation."""

    TRASHED_IN_USE = "a volume that QEMU has open was trashed"
    TRASHED_DATA = "a volume with uncommitted guest data was trashed"
    DEFINITION_DELETED = "a definition or save image names a deleted volume"
    WRITES_LOST = "the machine runs without writes that it had acknowledged"
    FALSE_COMPLETED = "completed, but QEMU and both definitions are not all on the new leaf"
    COMPLETED_ILLEGAL = "completed, but the new leaf is marked illegal"
    SPOILT = "completed, but the snapshot's content has changed since"
    FALSE_ROLLED_BACK = "rolled back, but a new leaf is somewhere"
    NOT_QUIESCED = "completed, but not quiesced as it was required"
    WRONG_LABEL = "labelled file-system consistent, but the switch was not made in this freeze"
    TWO_JOBS = "two jobs act on one machine, or one that has ended"
    TWO_CALLS = "two snapshot calls are in flight"
    OPERATOR = "an operator was asked without need"
    FROZEN_FOR_EVER = "a guest can stay frozen for ever"
    NEVER_ENDS = "a job can never end, and waits for nothing that has a name"


class Violation(NamedTuple):
    """What does not hold, and where."""

    kind: Kind
    detail: str


ACTING = frozenset({"define", "redefine", "intent", "freeze", "freezing", "switch", "switching", "commit"})


def violation(model: Model, world: World) -> Violation | None:
    """Return the first promise that does not hold, None if all do."""
    found = _volumes(world) or _calls(world) or _acting(model, world)
    if found is None:
        for number, job in enumerate(world.jobs):
            label = model.sagas.labels[job.saga]
            if label == "completed":
                found = _completed(model, world, number, job)
            elif label == "rolled_back":
                found = _rolled_back(world, number, job)
            elif label == "needs_operator" and not model.config.asks_operator:
                found = Violation(Kind.OPERATOR, f"job {number + 1}")
            if found is not None:
                break
    return found


def _volumes(world: World) -> Violation | None:
    vm = world.vm
    for number, job in enumerate(world.jobs):
        for disk in range(len(vm.chain)):
            volume = volume_of(world, number, disk)
            where = f"{job.new} of disk {disk + 1}: {volume}"
            if volume.file != "there":
                if is_open(vm, job.new, disk):
                    return Violation(Kind.TRASHED_IN_USE, where)
                if volume.data == "guest":
                    return Violation(Kind.TRASHED_DATA, where)
                if _is_named(world, job.new, disk):
                    return Violation(Kind.DEFINITION_DELETED, where)
            elif volume.data == "guest" and vm.at != NOWHERE and job.new not in vm.chain[disk]:
                return Violation(Kind.WRITES_LOST, f"{where}, the machine runs on {vm.chain[disk]}")
    return None


def _is_named(world: World, letter: str, disk: int) -> bool:
    if world.vm.saved and letter in world.vm.chain[disk]:
        return True
    return any(
        host.definition is not None and not host.dead and letter in host.definition[disk] for host in world.hosts
    )


def _calls(world: World) -> Violation | None:
    for number, host in enumerate(world.hosts):
        if sum(call.kind == "switch" for call in host.calls) > 1:
            return Violation(Kind.TWO_CALLS, f"on host {number + 1}: {host.calls}")
    return None


def _acting(model: Model, world: World) -> Violation | None:
    handlers: list[Handler] = [h.handler for h in world.hosts if h.handler and h.handler.at in ACTING]
    for handler in handlers:
        if model.sagas.is_over(world.jobs[handler.job].saga):
            return Violation(Kind.TWO_JOBS, f"{handler.op} of job {handler.job + 1}, which has ended")
    unfinished = [number for number, job in enumerate(world.jobs) if not model.sagas.is_over(job.saga)]
    if handlers and len(unfinished) > 1:
        return Violation(Kind.TWO_JOBS, f"jobs {unfinished} are under way, and {handlers[0].op} acts")
    return None


def _completed(model: Model, world: World, number: int, job: Job) -> Violation | None:
    vm = world.vm
    if model.config.mode == "require" and job.label != "filesystem":
        return Violation(Kind.NOT_QUIESCED, f"label: {job.label}")
    for disk in range(len(vm.chain)):
        if vm.at != NOWHERE and not (_stands(vm.chain[disk], job) and _stands(vm.live[disk], job)):
            return Violation(Kind.FALSE_COMPLETED, f"QEMU {vm.chain[disk]}, live {vm.live[disk]}")
        for host in world.hosts:
            defined = host.definition[disk] if host.definition is not None else ""
            if defined and not host.dead and not _names(world, defined, job):
                return Violation(Kind.FALSE_COMPLETED, f"persistent definition {defined}, QEMU {vm.chain[disk]}")
        if volume_of(world, number, disk).meta == "illegal":
            return Violation(Kind.COMPLETED_ILLEGAL, f"{job.new} of disk {disk + 1}")
    if number + 1 == len(world.jobs):
        if job.label == "filesystem" and vm.content != "clean":
            return Violation(Kind.WRONG_LABEL, f"content: {vm.content}")
        if vm.content == "spoilt":
            return Violation(Kind.SPOILT, f"label {job.label}")
    return None


def _stands(chain: str, job: Job) -> bool:
    """Tell whether the new leaf stands in a chain, directly above the old one."""
    return job.new + job.old in chain


def _names(world: World, defined: str, job: Job) -> bool:
    """Tell whether a definition leads to the new leaf: by its own chain, or by the headers below its top."""
    top = job_of(defined[0])
    below = top is not None and world.jobs[top].old == job.new
    return job.new in defined or below


def _rolled_back(world: World, number: int, job: Job) -> Violation | None:
    vm = world.vm
    for disk in range(len(vm.chain)):
        volume = volume_of(world, number, disk)
        in_chain = vm.at != NOWHERE and (job.new in vm.live[disk] or is_open(vm, job.new, disk))
        if in_chain or volume.meta in ("legal", "illegal") or _is_named(world, job.new, disk):
            return Violation(Kind.FALSE_ROLLED_BACK, f"{job.new} of disk {disk + 1}: {volume}, live {vm.live[disk]}")
    return None


# ---- goals of what must stay possible ------------------------------------------------------------------------------


def is_thawed(world: World) -> bool:
    """Tell whether the guest is not frozen by us, and will not be."""
    return world.vm.frozen != "by us" and not world.vm.late


def has_end_or_name(model: Model, world: World) -> bool:
    """Tell whether every job has ended, or waits for something that has a name and is truly missing."""
    for job in world.jobs:
        state = model.sagas.states[job.saga]
        label = model.sagas.labels[job.saga]
        is_stuck = isinstance(state, NeedsOperator)  # test_saga_words.py: it always says why
        silent = label == "awaiting_host" and any(
            host.dead or not (host.agent or model.config.agent_returns) for host in world.hosts
        )
        if not (model.sagas.is_over(job.saga) or is_stuck or silent):
            return False
    return bool(world.jobs)
