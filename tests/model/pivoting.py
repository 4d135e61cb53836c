"""The pivot of the model's agent, step by step in the order of `operations/pivot.py`."""

from collections.abc import Callable, Iterator

from common.messaging.messages import Outcome
from tests.model.guest import after_freeze, thawed
from tests.model.hypervisor import hand_over
from tests.model.model import Model
from tests.model.observing import UNKNOWN, in_flight, look
from tests.model.world import Call, Handler, Receipt, Reply, Step, Why, World, at_host, volume_of

Steps = Iterator[Step]


def _with(world: World, number: int, handler: Handler) -> World:
    return at_host(world, number, handler=handler)


def _is_in_run(world: World, number: int, handler: Handler) -> bool:
    return world.hosts[number].libvirtd and world.vm.at == number and handler.same_run


def _prepare(model: Model, world: World, number: int, handler: Handler) -> Steps:
    """Check everything, touch nothing."""
    host, vm = world.hosts[number], world.vm
    if not host.libvirtd:
        return
    if in_flight(model, world, number):
        answer = handler._replace(at="done", reply=UNKNOWN)
        yield Step("an earlier call may still run", _with(world, number, answer))
        return
    if why := _refusal(model, world, number, handler):
        refused = handler._replace(at="conclude", why=why)
        yield Step(f"the pivot is refused before anything was touched: {why}", _with(world, number, refused))
    elif vm.at == number:
        quiesce = handler.quiesce and vm.state == "running"
        first = "define" if host.definition is not None and model.rules.definition_first else "intent"
        if first == "intent" and not quiesce:
            first = "switch"
        ready = handler._replace(at=first, quiesce=quiesce, vm_state=vm.state, same_run=True)
        yield Step("the machine may be pivoted", _with(world, number, ready))
    else:
        yield Step(
            "the machine is off: redefines it", _with(world, number, handler._replace(at="redefine", vm_state="off"))
        )


def _refusal(model: Model, world: World, number: int, handler: Handler) -> Why:
    vm, host, job = world.vm, world.hosts[number], world.jobs[handler.job]
    if vm.at != number and (host.definition is None or vm.saved):
        return "refused"
    if vm.at == number and vm.state == "io_error":
        return "refused"
    if model.rules.precondition:
        tops = {chain[0] for chain in vm.live} if vm.at == number else set()
        tops |= {chain[0] for chain in host.definition or () if chain}
        volumes = [volume_of(world, handler.job, disk) for disk in range(len(vm.chain))]
        if tops != {job.old} or any((v.file, v.meta, v.data) != ("there", "legal", "") for v in volumes):
            return "refused"
    if vm.at == number and handler.quiesce and vm.state == "running":
        return "refused" if vm.frozen else "" if model.config.guest_agent else "no_agent"
    return ""


def _define(model: Model, world: World, number: int, handler: Handler) -> Steps:
    at = "defining" if handler.at == "define" else "redefining"
    host = world.hosts[number]
    if not host.libvirtd or host.definition is None or (at == "redefining" and world.vm.at == number):
        failed = handler._replace(at="undo" if at == "defining" else "conclude", why="refused")
        yield Step("cannot set the definition now", _with(world, number, failed))
        return
    calls = (*host.calls, Call("define", handler.job))
    issued = host.journal._replace(issued=True)
    world = at_host(world, number, calls=calls, journal=issued, handler=handler._replace(at=at))
    yield Step("journals a call, and has libvirt set the persistent definition to the new leaf", world)


def _declare(model: Model, world: World, number: int, handler: Handler) -> Steps:
    """Intent on the journal and in the live metadata, then the guard."""
    host = world.hosts[number]
    if not _is_in_run(world, number, handler) or not host.guard_up:
        failed = handler._replace(at="undo", why="refused")
        yield Step("cannot declare its intent to freeze", _with(world, number, failed))
        return
    journal = host.journal._replace(frozen="this run") if model.rules.record else host.journal
    guard = "armed" if model.rules.guard else ""
    world = world._replace(vm=world.vm._replace(mark=True)) if model.rules.mark else world
    world = at_host(world, number, journal=journal, guard=guard, handler=handler._replace(at="freeze"))
    yield Step("writes down that it will freeze, arms the guard", world)


def _freeze(model: Model, world: World, number: int, handler: Handler) -> Steps:
    if not _is_in_run(world, number, handler) or world.vm.state != "running":
        failed = handler._replace(at="disarm", why="freeze_failed")
        yield Step("cannot freeze the guest", _with(world, number, failed))
        return
    if world.vm.frozen:
        alone = handler._replace(at="leave alone", why="refused")
        yield Step("hears that somebody else has frozen the guest", _with(world, number, alone))
        return
    world = world._replace(vm=world.vm._replace(late=True))
    yield Step("tells the guest to freeze", _with(world, number, handler._replace(at="freezing")))


def _leave_alone(model: Model, world: World, number: int, handler: Handler) -> Steps:
    """Somebody else's freeze is not ours to thaw: the guard and the intent go."""
    host = world.hosts[number]
    guard = "" if host.guard in ("armed", "late") else host.guard
    journal = host.journal._replace(frozen="")
    world = at_host(world, number, guard=guard, journal=journal, handler=handler._replace(at="undo"))
    if world.vm.at == number:
        world = world._replace(vm=world.vm._replace(mark=False))
    yield Step("withdraws its intent, and leaves that freeze alone", world)


def _freezing(model: Model, world: World, number: int, handler: Handler) -> Steps:
    if not _is_in_run(world, number, handler):
        failed = handler._replace(at="disarm", why="freeze_failed")
        yield Step("loses the guest while it freezes", _with(world, number, failed))
    elif not world.vm.late:
        frozen = after_freeze(world.hosts[number], handler)
        yield Step("hears that the guest has frozen", _with(world, number, frozen))


def _switch(model: Model, world: World, number: int, handler: Handler) -> Steps:
    """Check once more that it is the same run, journal the call, make it."""
    host = world.hosts[number]
    if not _is_in_run(world, number, handler):
        failed = handler._replace(at="disarm" if handler.quiesce else "undo", why="refused")
        yield Step("finds the machine changed, does not switch", _with(world, number, failed))
        return
    calls = (*host.calls, Call("switch", handler.job))
    issued = host.journal._replace(issued=True)
    world = at_host(world, number, calls=calls, journal=issued, handler=handler._replace(at="switching"))
    yield Step("journals a call, and has libvirt switch all disks", world)


def _disarm(model: Model, world: World, number: int, handler: Handler) -> Steps:
    host = world.hosts[number]
    fired = host.guard != "armed" and model.rules.guard_tells
    guard = "lingering" if host.guard in ("armed", "late") else host.guard
    told = "it has fired" if fired else "it has not fired"
    world = at_host(world, number, guard=guard, handler=handler._replace(at="thaw", guard_fired=fired))
    yield Step(f"disarms the guard: {told}", world)


def _thaw(model: Model, world: World, number: int, handler: Handler) -> Steps:
    host, vm = world.hosts[number], world.vm
    handler = handler._replace(at="verify" if handler.result else "undo")
    if handler.why == "freeze_failed" and not model.rules.thaw_after_failure:
        yield Step("does not thaw what did not freeze", _with(world, number, handler))
        return
    if not host.libvirtd or vm.at != number or vm.state != "running":
        handler = handler._replace(why="refused" if handler.why == "freeze_failed" else handler.why)
        yield Step("cannot thaw now, leaves it to the guard", hand_over(_with(world, number, handler), number))
        return
    count = int(bool(vm.frozen) or vm.late)
    thawed_count = count if model.rules.count_thawed else handler.frozen
    handler = handler._replace(thaw_confirmed=True, thawed=thawed_count)
    world = _with(thawed(world), number, handler)
    if not host.calls:
        # While a call of ours holds libvirt's job, the mark cannot be removed, and the record stays with it.
        journal = host.journal._replace(frozen="")
        world = at_host(world._replace(vm=world.vm._replace(mark=False)), number, journal=journal)
    yield Step(f"thaws the guest: {count} file system(s)", world)


def _verify(model: Model, world: World, number: int, handler: Handler) -> Steps:
    """The call has returned, or was lost: an error is not an outcome, so look."""
    if handler.result != "ok":
        handler = handler._replace(at="conclude", why=handler.why or "refused")
        yield Step(f"the snapshot call ended with: {handler.result}", _with(world, number, handler))
        return
    receipt = Receipt(
        "running" if handler.vm_state == "running" else "paused",
        handler.quiesce,
        handler.same_run,
        handler.frozen,
        handler.thaw_confirmed,
        handler.thawed,
        handler.guard_fired,
    )
    if not world.hosts[number].libvirtd:
        answer = handler._replace(at="done", reply=UNKNOWN._replace(receipt=receipt))
        yield Step("switched, but cannot look now", _with(world, number, answer))
        return
    seen = look(model, world, number, handler.job)
    if seen.facts.io_error:
        back = handler._replace(at="commit", why="io_error")
        yield Step("switched, and the machine is paused by an I/O error: rolls back", _with(world, number, back))
    elif seen.outcome in (Outcome.ALL_NEW, Outcome.UNKNOWN):
        answer = handler._replace(at="done", reply=Reply("observed", seen.outcome, receipt=receipt))
        yield Step(f"switched, and sees {seen.outcome}", _with(world, number, answer))
    else:
        yield Step(f"switched, but sees {seen.outcome}", _with(world, number, handler._replace(at="conclude")))


def _undo(model: Model, world: World, number: int, handler: Handler) -> Steps:
    """Nothing was switched: put the definition back, if the machine still runs as it did."""
    host = world.hosts[number]
    handler = handler._replace(at="conclude")
    if host.definition is None or not _is_in_run(world, number, handler) or not model.rules.definition_first:
        yield Step("leaves the definition as it is", _with(world, number, handler))
        return
    old = (world.jobs[handler.job].old,) * len(host.definition)
    yield Step("sets the persistent definition back", at_host(world, number, definition=old, handler=handler))


STEPS: dict[str, Callable[[Model, World, int, Handler], Steps]] = {
    "prepare": _prepare,
    "redefine": _define,
    "define": _define,
    "intent": _declare,
    "freeze": _freeze,
    "leave alone": _leave_alone,
    "freezing": _freezing,
    "switch": _switch,
    "disarm": _disarm,
    "thaw": _thaw,
    "verify": _verify,
    "undo": _undo,
}
