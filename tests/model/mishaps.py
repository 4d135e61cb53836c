"""What goes wrong in the model, as often as its budget says: crashes, losses, delays, and people."""

from collections.abc import Iterator

from common.messaging.messages import Refusal
from tests.model.hypervisor import RUNNING, WAITING, after_call, stopped
from tests.model.model import Model
from tests.model.world import NOWHERE, SPM, Call, Host, Reply, Step, Vm, World, at_host, new_run, spent


def mishaps(model: Model, world: World) -> Iterator[Step]:
    """Yield every mishap that the budget still allows, and the restarts that follow one."""
    budget = world.budget
    for number, host in enumerate(world.hosts):
        if host.dead:
            continue
        yield from _restarts(model, world, number, host)
        if any(budget[:6]):
            yield from _crashes(world, number, host)
        yield from _slow(world, number, host)
    yield from _messages(model, world)
    yield from _spm(world)
    if world.vm.at != NOWHERE:
        yield from _people(world, world.vm.at)
        yield from _migrations(model, world, world.vm.at)


def _restarts(model: Model, world: World, number: int, host: Host) -> Iterator[Step]:
    if not host.libvirtd:
        yield Step(f"libvirtd {number + 1}: starts again", at_host(world, number, libvirtd=True))
    if not host.agent and model.config.agent_returns:
        yield Step(f"host {number + 1}: its agent starts again", at_host(world, number, agent=True))
    if not host.guard_up:
        yield Step(f"guard {number + 1}: starts again", at_host(world, number, guard_up=True))


def _orphaned(calls: tuple[Call, ...]) -> tuple[Call, ...]:
    return tuple(call._replace(own=False) for call in calls)


def _crashes(world: World, number: int, host: Host) -> Iterator[Step]:
    budget = world.budget
    if budget.agent and host.agent:
        guard = "firing" if host.guard in ("armed", "lingering", "fired", "late") else host.guard
        dead = at_host(world, number, agent=False, handler=None, calls=_orphaned(host.calls), guard=guard)
        yield Step(f"host {number + 1}: THE AGENT DIES", spent(dead, "agent"), True)
    if budget.guard and host.guard_up and host.guard:
        dead = at_host(world, number, guard_up=False, guard="")
        yield Step(f"guard {number + 1}: DIES", spent(dead, "guard"), True)
    if budget.libvirtd and host.libvirtd:
        yield Step(f"libvirtd {number + 1}: DIES", spent(_libvirtd_dies(world, number, host), "libvirtd"), True)
    if budget.connection and host.handler is not None and host.handler.at in WAITING:
        lost = at_host(world, number, handler=after_call(host.handler, "lost"), calls=_orphaned(host.calls))
        yield Step(f"host {number + 1}: LOSES THE CONNECTION, its call goes on", spent(lost, "connection"), True)
    if budget.reboot and (host.agent or world.vm.at == number):
        yield Step(
            f"host {number + 1}: LOSES POWER and boots again", spent(_rebooted(world, number, host), "reboot"), True
        )
    if budget.death:
        gone = at_host(_rebooted(world, number, host), number, dead=True, agent=False, libvirtd=False)
        yield Step(f"host {number + 1}: DIES FOR GOOD", spent(gone, "death"), True)


def _libvirtd_dies(world: World, number: int, host: Host) -> World:
    """Its calls die with it; what QEMU has done or opened stays, whatever the XML says."""
    handler = host.handler
    if handler is not None and handler.at in WAITING:
        handler = after_call(handler, "lost")
    journal = host.journal._replace(issued=False)
    return at_host(world, number, libvirtd=False, calls=(), handler=handler, journal=journal)


def _rebooted(world: World, number: int, host: Host) -> World:
    if world.vm.at == number:
        world = stopped(world)
        host = world.hosts[number]
    journal = host.journal._replace(issued=False)
    return at_host(world, number, agent=False, libvirtd=False, handler=None, calls=(), guard="", journal=journal)


def _slow(world: World, number: int, host: Host) -> Iterator[Step]:
    """Freezes that fail or take too long, and a handler that is slower than the guard allows."""
    budget, handler = world.budget, host.handler
    if budget.slow and host.guard == "armed":
        fired = at_host(world, number, guard="firing")
        yield Step(f"guard {number + 1}: the time limit is over", spent(fired, "slow"), True)
    if handler is None or handler.at != "freezing" or not world.vm.late:
        return
    failed = at_host(world, number, handler=handler._replace(at="disarm", why="freeze_failed"))
    if budget.freeze_late:
        yield Step(f"host {number + 1}: THE FREEZE TAKES TOO LONG and is given up", spent(failed, "freeze_late"), True)
    if budget.freeze_fails:
        failed = failed._replace(vm=world.vm._replace(late=False))
        yield Step("guest: a hook fails, nothing is frozen", spent(failed, "freeze_fails"), True)


def _messages(model: Model, world: World) -> Iterator[Step]:
    if world.budget.loss:
        for sent in world.sent:
            lost = world._replace(sent=world.sent - {sent})
            yield Step(f"broker: LOSES a {sent.op}", spent(lost, "loss"), True)
        for said in world.said:
            lost = world._replace(said=world.said - {said})
            yield Step(f"broker: LOSES an answer ({said.reply.kind} {said.reply.what})", spent(lost, "loss"), True)
    if world.budget.refusal:
        for sent in world.sent:
            not_ready = Reply("refused", Refusal.NOT_READY)
            refused = model.answered(world, sent.job, sent.attempt, not_ready)
            if refused != world and (sent.to == SPM or world.hosts[sent.to].handler is None):
                who = "SPM" if sent.to == SPM else f"host {sent.to + 1}"
                yield Step(f"{who}: {sent.op}: not ready", spent(refused, "refusal"), True)


def _spm(world: World) -> Iterator[Step]:
    if world.spm is None:
        return
    if world.budget.spm:
        yield Step("SPM: DIES, a standby takes over", spent(world._replace(spm=None), "spm"), True)
    if world.budget.spm_stop and world.old_spm is None:
        asleep = world._replace(spm=None, old_spm=world.spm)
        yield Step("SPM: IS STOPPED and loses its lease, a standby takes over", spent(asleep, "spm_stop"), True)


def _people(world: World, number: int) -> Iterator[Step]:
    """What users and others do to a running machine."""
    budget, vm = world.budget, world.vm
    busy = any(call.stage in RUNNING for call in world.hosts[number].calls)
    if budget.stop:
        yield Step("user: stops the machine", spent(stopped(world), "stop"), True)
    if budget.save and not busy and vm.state == "running":
        off = stopped(world)
        saved = off._replace(vm=off.vm._replace(saved=True, chain=vm.live))
        yield Step("user: saves the machine", spent(saved, "save"), True)
    if budget.pause and vm.state == "running":
        paused = world._replace(vm=vm._replace(state="paused"))
        yield Step("user: pauses the machine", spent(paused, "pause"), True)
    if budget.virsh_thaw and vm.frozen:
        thawed = world._replace(vm=vm._replace(frozen=""))
        yield Step("somebody: thaws the guest by hand", spent(thawed, "virsh_thaw"), True)
    if budget.virsh_freeze and not vm.frozen and not vm.late and vm.state == "running":
        frozen = world._replace(vm=vm._replace(frozen="by others"))
        yield Step("somebody: freezes the guest by hand", spent(frozen, "virsh_freeze"), True)
    if budget.virsh_snapshot and world.hosts[number].libvirtd and not busy and vm.live == vm.chain:
        yield Step(
            "somebody: takes a snapshot with virsh", spent(_virsh_snapshot(world, number), "virsh_snapshot"), True
        )


def _virsh_snapshot(world: World, number: int) -> World:
    vm, host = world.vm, world.hosts[number]
    chain = tuple("F" + chain for chain in vm.chain)
    definition = host.definition
    if definition is not None:
        pairs = zip(definition, vm.chain, chain, strict=True)
        definition = tuple(now if defined[0] == before[0] else defined for defined, before, now in pairs)
    return at_host(world._replace(vm=vm._replace(chain=chain, live=chain)), number, definition=definition)


def _migrations(model: Model, world: World, source: int) -> Iterator[Step]:
    """A live migration: the target opens what the source's live XML names, and takes over its persistent definition.

    It waits for libvirt's job, and takes a second at least: a redefinition, of 2 ms, is over by then.
    """
    host, vm = world.hosts[source], world.vm
    if not world.budget.migrate or not host.libvirtd or vm.state == "io_error":
        return
    if any(call.stage in RUNNING or call.kind == "define" for call in host.calls):
        return
    for target, other in enumerate(world.hosts):
        if target == source or not other.libvirtd or other.dead:
            continue
        yield Step(
            f"user: migrates the machine to host {target + 1}",
            spent(_migrated(model, world, source, target), "migrate"),
            True,
        )


def _migrated(model: Model, world: World, source: int, target: int) -> World:
    vm, nothing = world.vm, ("",) * len(world.vm.chain)
    moved: Vm = vm._replace(at=target, chain=vm.live, loose=nothing)
    world = new_run(world._replace(vm=moved))
    if not model.config.keeps_definition:
        definition = world.hosts[source].definition if model.config.definition_travels else vm.live
        world = at_host(at_host(world, source, definition=None), target, definition=definition)
    return world
