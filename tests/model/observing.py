"""How the model's agent looks at its machine: evidence as `observe.py` gathers it, for the product's real judge."""

from typing import NamedTuple

from common.messaging.messages import Outcome
from hostagent.operations.judge import DiskFacts, Facts, Place, should_ask_qemu
from tests.model.model import Model
from tests.model.world import Job, Reply, World, is_open, volume_of

TARGETS = ("vda", "vdb")


class Look(NamedTuple):
    """What one look showed, and what it proves."""

    facts: Facts
    outcome: str


def look(model: Model, world: World, number: int, job: int) -> Look:
    """Return what host `number` sees of a job's leaves now, and the judge's word on it."""
    facts = _facts(model, world, number, job)
    outcome = model.judged.get(facts)
    if outcome is None:
        outcome = model.judged[facts] = str(model.judge(facts))
    return Look(facts, outcome)


def _facts(model: Model, world: World, number: int, job: int) -> Facts:
    host, vm = world.hosts[number], world.vm
    active = vm.at == number
    commit_begun = model.rules.commit_is_recorded and host.journal.commits == job
    if not active and host.definition is None:
        return Facts(here=False, active=False, disks=(), commit_begun=commit_begun)
    disks = range(len(vm.chain))
    facts = Facts(
        here=True,
        active=active,
        disks=tuple(_disk(model, world, number, world.jobs[job], disk) for disk in disks),
        io_error=active and vm.state == "io_error",
        managed_save=not active and vm.saved,
        commit_begun=commit_begun,
    )
    if model.rules.ask_qemu and should_ask_qemu(facts):
        asked = tuple(_ask_qemu(model, world, world.jobs[job], disk, seen) for disk, seen in enumerate(facts.disks))
        return _with_disks(facts, asked)
    return facts


def _with_disks(facts: Facts, disks: tuple[DiskFacts, ...]) -> Facts:
    return Facts(
        here=facts.here,
        active=facts.active,
        disks=disks,
        io_error=facts.io_error,
        managed_save=facts.managed_save,
        commit_begun=facts.commit_begun,
    )


def _disk(model: Model, world: World, number: int, job: Job, disk: int) -> DiskFacts:
    host, vm = world.hosts[number], world.vm
    live = place(model, vm.live[disk], job) if vm.at == number else Place.ABSENT
    defined = host.definition[disk] if host.definition is not None else ""
    persistent = place(model, defined, job, header_vouches=True)
    locked = is_open(vm, job.new, disk)
    if not model.rules.definition_counts and vm.at == number:
        persistent = live
    qemu = None if model.rules.ask_qemu or vm.at != number else live
    return DiskFacts(target=TARGETS[disk], live=live, persistent=persistent, new_is_locked=locked, qemu=qemu)


def _ask_qemu(model: Model, world: World, job: Job, disk: int, seen: DiskFacts) -> DiskFacts:
    loose = job.new in world.vm.loose[disk]
    return DiskFacts(
        target=seen.target,
        live=seen.live,
        persistent=seen.persistent,
        new_is_locked=seen.new_is_locked,
        qemu=Place.ODD if loose else place(model, world.vm.chain[disk], job),
    )


def place(model: Model, chain: str, job: Job, *, header_vouches: bool = False) -> Place:
    """Return where a chain has a disk, as `observe._place` does."""
    if not chain:
        return Place.ABSENT
    new, old = job.new, job.old
    if new not in chain or (not model.rules.whole_chain and chain[0] != new):
        return Place.OLD if chain[0] == old else Place.ELSEWHERE
    if chain[0] != new:
        return Place.ODD
    if not model.rules.parent_counts:
        return Place.NEW
    if len(chain) == 1:
        return Place.NEW if header_vouches else Place.ODD
    return Place.NEW if chain[1] == old else Place.ODD


def in_flight(model: Model, world: World, number: int) -> bool:
    """Tell whether a call of ours may still run, as far as `barrier.py` can know: one that was issued on this boot, to
    this libvirtd."""
    host = world.hosts[number]
    if not model.rules.barrier or not host.journal.issued:
        return False
    is_here = host.definition is not None or world.vm.at == number
    return bool(host.calls) and (is_here or model.rules.left_may_return)


def is_behind(disk: DiskFacts) -> bool:
    """Tell whether the definition is to follow QEMU to the new leaf (`settle.py`)."""
    return {disk.truth, disk.live} == {Place.NEW} and disk.persistent is Place.OLD


def is_ahead(disk: DiskFacts) -> bool:
    """Tell whether the definition is to come back to where QEMU is (`settle.py`)."""
    return {disk.truth, disk.live} == {Place.OLD} and disk.persistent is Place.NEW


def aligned(model: Model, world: World, number: int, job: int) -> tuple[World, str]:
    """Return the world with the persistent definition where QEMU is, and 'volume_not_empty' where it must not go back.

    Forward it is always safe; back only when the new leaf is empty, gone, or committed.
    """
    host, seen = world.hosts[number], look(model, world, number, job)
    if not seen.facts.active or not all(disk.is_known for disk in seen.facts.disks) or host.definition is None:
        return world, ""
    definition = list(host.definition)
    for disk, facts in enumerate(seen.facts.disks):
        if is_behind(facts):
            definition[disk] = world.jobs[job].new
        elif is_ahead(facts):
            if not seen.facts.commit_begun and model.rules.empty and volume_of(world, job, disk).data:
                return world, "volume_not_empty"
            definition[disk] = world.jobs[job].old
    if tuple(definition) == host.definition:
        return world, ""
    hosts = list(world.hosts)
    hosts[number] = host._replace(definition=tuple(definition))
    return world._replace(hosts=tuple(hosts)), ""


UNKNOWN = Reply("observed", Outcome.UNKNOWN, "pivot_unknown")
