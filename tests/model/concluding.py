"""How every operation of the model's agent ends (look, align the definition, say what is proven), and the repair.

Follows `operations/settle.py`, `probe.py`, `repair.py` and `rollback.py`.
"""

from collections.abc import Callable, Iterator

from common.messaging.messages import Outcome
from hostagent.operations.judge import Place
from tests.model.guest import thawed
from tests.model.model import Model
from tests.model.observing import UNKNOWN, Look, aligned, in_flight, look
from tests.model.world import Handler, Receipt, Reply, Step, World, at_host, put, spent, volume_of, with_volume

Steps = Iterator[Step]


def _conclude(model: Model, world: World, number: int, handler: Handler) -> Steps:
    """Behind the barrier: observe, align the definition, answer."""
    if not world.hosts[number].libvirtd or _may_run(model, world, number, handler):
        answer = handler._replace(at="done", reply=UNKNOWN)
        yield Step(
            "cannot tell: an earlier call may still run, or libvirt is away", at_host(world, number, handler=answer)
        )
        return
    changed, refused = aligned(model, world, number, handler.job)
    if changed != world:
        handler = handler._replace(at="answer")
        yield Step("sets the persistent definition to what QEMU has", at_host(changed, number, handler=handler))
        return
    yield _answer_step(model, world, number, handler, refused)


def _may_run(model: Model, world: World, number: int, handler: Handler) -> bool:
    returned = handler.result in ("ok", "error") or (handler.result == "lost" and not model.rules.timeout_is_unknown)
    return not returned and in_flight(model, world, number)


def _answer(model: Model, world: World, number: int, handler: Handler) -> Steps:
    if not world.hosts[number].libvirtd:
        answer = handler._replace(at="done", reply=UNKNOWN)
        yield Step("cannot look any more", at_host(world, number, handler=answer))
        return
    yield _answer_step(model, world, number, handler, "")


def _answer_step(model: Model, world: World, number: int, handler: Handler, refused: str) -> Step:
    seen = look(model, world, number, handler.job)
    reply = _reply(model, world, number, handler, seen)
    if refused:
        reply = reply._replace(code=refused)
    wanted = reply.what == Outcome.BAD or (handler.undo and reply.what == Outcome.ALL_NEW)
    if handler.op == "repair" and handler.result == "" and wanted:
        return Step(
            "sees that there is something to repair", at_host(world, number, handler=handler._replace(at="commit"))
        )
    answer = handler._replace(at="done", reply=reply)
    return Step(f"sees {reply.what}", at_host(world, number, handler=answer))


def _reply(model: Model, world: World, number: int, handler: Handler, seen: Look) -> Reply:
    outcome, code = seen.outcome, "pivot_unknown"
    if outcome == Outcome.ALL_NEW:
        receipt = _own_receipt(model, handler) or _earlier_receipt(model, world, number, handler)
        return Reply("observed", outcome, receipt=receipt)
    began = handler.op == "pivot" and (handler.vm_state or not handler.why)
    if outcome == Outcome.NOT_HERE and began and model.rules.left_is_unknown:
        # The machine has left in the middle of a pivot, and may have taken the new leaf along.
        return UNKNOWN
    if outcome == Outcome.NONE and handler.why == "no_agent":
        outcome = Outcome.NONE_NO_AGENT
    if outcome == Outcome.NONE and handler.why == "freeze_failed":
        code = "freeze_failed"
    cut_off = model.rules.cut_off_is_told and outcome == Outcome.BAD and handler.result == "lost"
    if handler.why == "io_error" and outcome in (Outcome.BAD, Outcome.NONE_ROLLED_BACK) and not cut_off:
        code = "volume_not_writable"
    return Reply("observed", outcome, code, begun=seen.facts.commit_begun)


def _own_receipt(model: Model, handler: Handler) -> Receipt | None:
    """A redefinition that libvirt confirmed earns a receipt; a switch whose call did not return earns none."""
    if handler.vm_state == "off" and handler.result == "ok":
        return Receipt("off", False, True, 0, False, 0, False)
    if handler.frozen and not model.rules.own_switch:
        return Receipt("running", True, True, handler.frozen, True, handler.thawed, handler.guard_fired)
    return None


def _earlier_receipt(model: Model, world: World, number: int, handler: Handler) -> Receipt | None:
    """A probe adds what the pivot itself had proven: its answer may be lost, its receipt is not."""
    proof = world.hosts[number].journal.proof
    if handler.op != "probe" or proof is None:
        return None
    receipt, was_all_new, same_run = proof
    if not was_all_new and not same_run:
        return receipt._replace(own_switch=False)
    return receipt


# ---- repair ---------------------------------------------------------------------------------------------------------


def _commit(model: Model, world: World, number: int, handler: Handler) -> Steps:
    """Bring every disk back: journal first, then commit disk by disk, detach what is loose, resume, thaw."""
    host = world.hosts[number]
    if not host.libvirtd:
        yield Step("cannot repair now", at_host(world, number, handler=handler._replace(at="conclude", result="lost")))
        return
    seen = look(model, world, number, handler.job)
    if not seen.facts.active:
        yield _redefine_empty(model, world, number, handler, seen)
        return
    for disk, facts in enumerate(seen.facts.disks):
        if Place.NEW in (facts.live, facts.truth):
            if host.journal.commits != handler.job:
                journal = host.journal._replace(commits=handler.job)
                yield Step("journals that it begins to commit", at_host(world, number, journal=journal))
                return
            yield Step(f"commits the new leaf of disk {disk + 1} into the old one", _committed(world, number, disk))
            if world.budget.commit_fails:
                yield _commit_fails(world, number, handler, disk)
            return
    yield _finish_repair(world, number, handler)


def _committed(world: World, number: int, disk: int) -> World:
    """One active commit: what the new leaf holds is in the old one then, and the snapshot's content with it."""
    vm, host = world.vm, world.hosts[number]
    job = host.journal.commits
    top, chain = vm.chain[disk], vm.chain[disk][1:]
    world = _spoilt(world, job, disk, data="committed")
    live = chain if vm.live[disk] == top else vm.live[disk]
    definition = host.definition
    if definition is not None and vm.live[disk] == top and definition[disk][0] == top[0]:
        definition = put(definition, disk, chain)
    vm = world.vm._replace(chain=put(vm.chain, disk, chain), live=put(vm.live, disk, live))
    return at_host(world._replace(vm=vm), number, definition=definition)


def _spoilt(world: World, job: int, disk: int, *, data: str) -> World:
    volume = volume_of(world, job, disk)
    if volume.data != "guest":
        return world
    world = with_volume(world, job, disk, volume._replace(data=data))  # type: ignore[arg-type]
    return world._replace(vm=world.vm._replace(content="spoilt"))


def _commit_fails(world: World, number: int, handler: Handler, disk: int) -> Step:
    """A commit that has copied something and is given up: the machine stays on its new leaf."""
    spoilt = _spoilt(spent(world, "commit_fails"), handler.job, disk, data="guest")
    failed = at_host(spoilt, number, handler=handler._replace(at="conclude", result="error"))
    return Step("the commit copies a part, and is given up", failed, True)


def _finish_repair(world: World, number: int, handler: Handler) -> Step:
    vm, new = world.vm, world.jobs[handler.job].new
    loose = tuple(loose.replace(new, "") for loose in vm.loose)
    state = "running" if vm.state == "io_error" else vm.state
    world = world._replace(vm=vm._replace(loose=loose, state=state))
    handler = handler._replace(at="conclude", result="ok")
    if state == "running" and (world.hosts[number].journal.frozen or vm.mark):
        journal = world.hosts[number].journal._replace(frozen="")
        world = at_host(thawed(world), number, journal=journal)
        world = world._replace(vm=world.vm._replace(mark=False))
    text = "detaches what is loose, resumes and thaws what has to be"
    return Step(text, at_host(world, number, handler=handler))


def _redefine_empty(model: Model, world: World, number: int, handler: Handler, seen: Look) -> Step:
    """Of a stopped machine only the definition can be set back, and only from leaves that are empty."""
    handler = handler._replace(at="conclude", result="ok")
    host = world.hosts[number]
    behind = [disk for disk, facts in enumerate(seen.facts.disks) if facts.persistent is Place.NEW]
    if (
        not behind
        or world.vm.saved
        or (model.rules.empty and any(volume_of(world, handler.job, disk).data for disk in behind))
    ):
        return Step("can repair nothing while the machine is off", at_host(world, number, handler=handler))
    definition = host.definition or ()
    for disk in behind:
        definition = put(definition, disk, world.jobs[handler.job].old)
    changed = at_host(world, number, definition=definition, handler=handler)
    return Step("sets the stopped machine's definition back", changed)


STEPS: dict[str, Callable[[Model, World, int, Handler], Steps]] = {
    "conclude": _conclude,
    "repair": _conclude,
    "answer": _answer,
    "commit": _commit,
}
