"""The guest of the model: its agent's queue, its writes, and the guard that thaws it."""

from collections.abc import Iterator

from tests.model.model import Model
from tests.model.world import NOWHERE, Handler, Host, Step, World, at_host, job_of, spent, volume_of, with_volume


def thawed(world: World) -> World:
    """Return the world after a thaw, which waits behind a freeze that is still on its way."""
    return world._replace(vm=world.vm._replace(frozen="", late=False))


def after_freeze(host: Host, handler: Handler) -> Handler:
    """Return where a handler whose freeze has returned goes on: it gives the guard, unless that fired, a new limit."""
    if host.guard_up and host.guard not in ("firing", "fired", "late"):
        return handler._replace(at="switch", frozen=1)
    return handler._replace(at="disarm", frozen=1, why="refused")


def guest_steps(model: Model, world: World) -> Iterator[Step]:
    """Yield what the guest may do next: freeze as it was told to, write."""
    vm = world.vm
    if vm.at == NOWHERE or vm.state != "running":
        return
    if vm.late:
        yield _freeze(world)
    elif not vm.frozen:
        yield from _write(world)


def _freeze(world: World) -> Step:
    vm = world.vm
    world = world._replace(vm=vm._replace(late=False, frozen="by us"))
    handler = world.hosts[vm.at].handler
    if handler is not None and handler.at == "freezing":
        world = at_host(world, vm.at, handler=after_freeze(world.hosts[vm.at], handler))
    return Step("guest: all its file systems are frozen", world)


def _write(world: World) -> Iterator[Step]:
    """A first write into an empty or committed leaf: later ones change nothing that is asked for."""
    vm = world.vm
    tops = [(disk, job_of(chain[0])) for disk, chain in enumerate(vm.chain)]
    todo = [(disk, job) for disk, job in tops if job is not None and volume_of(world, job, disk).data != "guest"]
    if not todo:
        return
    changed = world
    for disk, job in todo:
        changed = with_volume(changed, job, disk, volume_of(world, job, disk)._replace(data="guest"))
    yield Step("guest: writes to its new leaf, fsync'ed and acknowledged", changed)
    if world.budget.io_error:
        paused = spent(world, "io_error")._replace(vm=vm._replace(state="io_error"))
        yield Step("guest: its first write to the new leaf fails, QEMU pauses it", paused, mishap=True)


def guard_steps(model: Model, world: World, number: int) -> Iterator[Step]:
    """Yield what the freeze guard of a host may do: thaw until it is done, then watch for a late freeze a while."""
    host, vm = world.hosts[number], world.vm
    if host.guard not in ("firing", "fired") or not host.guard_up:
        return
    if vm.at != number:
        yield Step(f"guard {number + 1}: the machine is not here any more", at_host(world, number, guard=""))
        return
    if not host.libvirtd or vm.state != "running":
        return
    if host.guard == "firing":
        done = at_host(world, number, guard="fired")
        yield Step(f"guard {number + 1}: thaws the guest", thawed(done))
        if vm.late and world.budget.overtaken:
            yield Step(f"guard {number + 1}: its thaw overtakes the freeze", spent(done, "overtaken"), mishap=True)
    elif vm.late or vm.frozen:
        yield Step(f"guard {number + 1}: thaws once more", thawed(world))
    else:
        # While its agent's connection lasts it watches on: that one may freeze all the same, and die.
        watches = "late" if host.handler is not None else ""
        yield Step(f"guard {number + 1}: has done its work", at_host(world, number, guard=watches))
