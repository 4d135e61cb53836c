"""libvirtd and QEMU of the model: calls that go on when the one who made them has died, and what they do."""

from collections.abc import Iterator

from tests.model.model import Model
from tests.model.world import (
    NOWHERE,
    Call,
    Handler,
    Host,
    Result,
    Step,
    World,
    at_host,
    header_chain,
    is_open,
    job_of,
    new_run,
    spent,
    volume_of,
)

WAITING = ("defining", "redefining", "switching")
"""Where a handler waits for libvirt."""
RUNNING = ("opened", "switched")
"""The stages in which a call holds libvirt's job of its machine."""


def hand_over(world: World, number: int) -> World:
    """Return the world with the guard thawing from now on, for as long as it takes."""
    return at_host(world, number, guard="firing") if world.hosts[number].guard_up else world


def hypervisor_steps(model: Model, world: World, number: int) -> Iterator[Step]:
    """Yield what the libvirtd of a host may do next: carry a call on by one step, start the machine."""
    host = world.hosts[number]
    if not host.libvirtd:
        return
    for position, call in enumerate(host.calls):
        for step in _carry_on(model, world, number, position, call):
            yield step._replace(text=f"libvirtd {number + 1}: {step.text}")
    if world.vm.at == NOWHERE and host.definition is not None and not host.dead:
        yield from _start(world, number, host)
    if world.vm.at == number and world.vm.state != "running":
        resumed = world._replace(vm=world.vm._replace(state="running"))
        yield Step("user: resumes the machine", resumed)


def _carry_on(model: Model, world: World, number: int, position: int, call: Call) -> Iterator[Step]:
    if call.kind == "define":
        yield _define(world, number, position, call)
    elif call.stage == "queued":
        yield _open(world, number, position, call)
    elif call.stage == "opened":
        yield _switch(world, number, position, call)
        if world.budget.partial and len(world.vm.chain) > 1:
            yield _switch_partly(world, number, position, call)
    else:
        yield _note(world, number, position, call)


# ---- calls ----------------------------------------------------------------------------------------------------------


def _with_call(world: World, number: int, position: int, call: Call | None) -> World:
    calls = world.hosts[number].calls
    changed = () if call is None else (call,)
    return at_host(world, number, calls=(*calls[:position], *changed, *calls[position + 1 :]))


def _returns(world: World, number: int, position: int, call: Call, result: Result) -> World:
    """End a call; whoever still waits for it learns what libvirt says."""
    world = _with_call(world, number, position, None)
    handler = world.hosts[number].handler
    if not call.own or handler is None:
        return world
    return at_host(world, number, handler=after_call(handler, result))


def after_call(handler: Handler, result: Result) -> Handler:
    """Return where a handler goes on when its call has returned, failed, or was lost with the connection."""
    handler = handler._replace(result=result)
    match handler.at, result:
        case "defining", "ok":
            return handler._replace(at="intent" if handler.quiesce else "switch", result="", defined=True)
        case "defining", _:
            return handler._replace(at="undo", why="refused")
        case "redefining", "ok":
            return handler._replace(at="conclude", defined=True)
        case "redefining", _:
            return handler._replace(at="conclude", why="refused")
        case "switching", _:
            return handler._replace(at="disarm" if handler.quiesce else "verify")
        case _:
            raise AssertionError((handler.at, result))


def _define(world: World, number: int, position: int, call: Call) -> Step:
    definition = world.hosts[number].definition
    if definition is None:
        return Step("knows no such machine, defines nothing", _returns(world, number, position, call, "error"))
    new = world.jobs[call.job].new
    world = at_host(world, number, definition=(new,) * len(definition))
    return Step(f"sets the persistent definition to {new}", _returns(world, number, position, call, "ok"))


def _open(world: World, number: int, position: int, call: Call) -> Step:
    """Open the new files in QEMU, which takes their locks. Of a machine that is off, only the definition changes."""
    new, vm, host = world.jobs[call.job].new, world.vm, world.hosts[number]
    disks = range(len(vm.chain))
    if vm.at != number:
        definition = host.definition
        if vm.at != NOWHERE or definition is None or any(chain[0] == new for chain in definition):
            return Step(
                "the machine is not here, the snapshot call fails", _returns(world, number, position, call, "error")
            )
        chains = tuple(new + header_chain(world, chain) for chain in definition)
        changed = at_host(world, number, definition=chains)
        text = "the machine is off: the snapshot call edits its definition, and succeeds"
        return Step(text, _returns(changed, number, position, call, "ok"))
    missing = any(volume_of(world, call.job, disk).file != "there" for disk in disks)
    if missing or any(is_open(vm, new, disk) for disk in disks):
        return Step(
            "QEMU cannot open the new files, the snapshot call fails", _returns(world, number, position, call, "error")
        )
    world = world._replace(vm=vm._replace(loose=tuple(loose + new for loose in vm.loose)))
    opened = _with_call(world, number, position, call._replace(stage="opened"))
    return Step(f"the snapshot call runs: QEMU opens {new}", opened)


def _switched(world: World, new: str, disks: int) -> World:
    vm = world.vm
    chain = tuple(new + chain if disk < disks else chain for disk, chain in enumerate(vm.chain))
    loose = tuple(loose.replace(new, "") for loose in vm.loose)
    content = vm.content if vm.content == "spoilt" else "clean" if vm.frozen else "crash"
    return world._replace(vm=vm._replace(chain=chain, loose=loose, content=content))


def _switch(world: World, number: int, position: int, call: Call) -> Step:
    new = world.jobs[call.job].new
    if any(new not in loose for loose in world.vm.loose):
        return Step("QEMU has closed the new files meanwhile", _returns(world, number, position, call, "error"))
    changed = _switched(world, new, len(world.vm.chain))
    how = "frozen" if world.vm.frozen else "not frozen"
    text = f"QEMU switches to {new} ({how})"
    return Step(text, _with_call(changed, number, position, call._replace(stage="switched")))


def _switch_partly(world: World, number: int, position: int, call: Call) -> Step:
    """Only the first disk is switched, and the call fails; libvirt notes what it has seen."""
    changed = _noted(_switched(spent(world, "partial"), world.jobs[call.job].new, 1), number)
    return Step(
        "QEMU switches one disk of two, and the call fails", _returns(changed, number, position, call, "error"), True
    )


def _noted(world: World, number: int) -> World:
    """Let libvirt note the live chain; the persistent one follows where it was where QEMU was."""
    vm, host = world.vm, world.hosts[number]
    definition = host.definition
    if definition is not None:
        followed = zip(definition, vm.live, vm.chain, strict=True)
        definition = tuple(chain if defined[0] == live[0] else defined for defined, live, chain in followed)
    return at_host(world._replace(vm=vm._replace(live=vm.chain)), number, definition=definition)


def _note(world: World, number: int, position: int, call: Call) -> Step:
    changed = _noted(world, number) if world.vm.at == number else world
    return Step(
        "notes it in both definitions; the snapshot call returns", _returns(changed, number, position, call, "ok")
    )


# ---- the machine ----------------------------------------------------------------------------------------------------


def _start(world: World, number: int, host: Host) -> Iterator[Step]:
    """Start a new run: from the save image if there is one, else from the definition and the files' headers."""
    vm = world.vm
    chain = vm.chain if vm.saved else tuple(c if len(c) > 1 else header_chain(world, c) for c in host.definition or ())
    if not all(_is_there(world, letter, disk) for disk, letters in enumerate(chain) for letter in letters):
        return
    changed = vm._replace(at=number, chain=chain, live=chain, state="running", saved=False)
    text = f"user: starts the machine on host {number + 1}, from {chain[0]}"
    yield Step(text, new_run(world._replace(vm=changed)))


def _is_there(world: World, letter: str, disk: int) -> bool:
    job = job_of(letter)
    return job is None or volume_of(world, job, disk).file == "there"


def stopped(world: World) -> World:
    """Return the world with QEMU gone, and with it what it had open, the freeze, our mark, and the call that ran."""
    vm, nothing = world.vm, ("",) * len(world.vm.chain)
    for position, call in enumerate(world.hosts[vm.at].calls):
        if call.stage in RUNNING:
            world = _returns(world, vm.at, position, call, "error")
    off = vm._replace(
        at=NOWHERE, chain=nothing, live=nothing, state="running", loose=nothing, frozen="", late=False, mark=False
    )
    return new_run(world._replace(vm=off))
