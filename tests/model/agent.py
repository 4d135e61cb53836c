"""The host agent of the model: what every command goes through (`operations/once.py`), and the sweep.

One handler at a time per machine, since it holds the machine's lock; each of its steps ends with one durable write or
one effect, so that the agent can die between any two. `pivoting.py` and `concluding.py` have the steps.
"""

from collections.abc import Iterator

from common.messaging.messages import Outcome, Refusal
from tests.model import concluding, pivoting
from tests.model.guest import thawed
from tests.model.hypervisor import WAITING, hand_over
from tests.model.model import Model
from tests.model.world import Handler, Host, Journal, Reply, Sent, Step, World, at_host

STEPS = pivoting.STEPS | concluding.STEPS


def agent_steps(model: Model, world: World, number: int) -> Iterator[Step]:
    """Yield what the agent of a host may do next."""
    host = world.hosts[number]
    if host.handler is None:
        if host.libvirtd:
            yield from _begin_any(model, world, number)
            if model.rules.sweep:
                yield from _sweep(world, number)
        return
    handler = host.handler
    if handler.at == "orphans":
        yield _thaw_orphans(world, number, handler)
    elif handler.at == "done":
        yield _done(model, world, number, handler)
    elif handler.at not in WAITING:
        for step in STEPS[handler.at](model, world, number, handler):
            yield step._replace(text=f"host {number + 1}: {step.text}")


def _begin_any(model: Model, world: World, number: int) -> Iterator[Step]:
    for sent in world.sent:
        if sent.to == number:
            step = _begin(model, world, number, sent)
            if step.world != world:
                yield step


def _begin(model: Model, world: World, number: int, sent: Sent) -> Step:
    """Journal the attempt; or refuse it, or say again what was said."""
    host = world.hosts[number]
    journal, about = host.journal, f"host {number + 1}: {sent.op}:"
    if model.rules.fence and sent.attempt < journal.attempt:
        stale = Reply("refused", Refusal.STALE)
        return Step(
            f"{about} refused, a later attempt is on record", model.answered(world, sent.job, sent.attempt, stale)
        )
    again = model.rules.once and sent.attempt == journal.attempt
    if again and journal.answer is not None:
        world = model.answered(world, sent.job, sent.attempt, journal.answer)
        return Step(f"{about} answered from the journal", world)
    handler = Handler(sent.job, sent.op, sent.attempt, "", sent.quiesce, sent.undo, first=not again)
    handler = handler._replace(at=_beginning(handler))
    if _has_intent(world, number):
        handler = handler._replace(at="orphans")
    world = at_host(world, number, journal=_begun(journal, sent), handler=handler)
    return Step(f"{about} {'goes on by looking' if again else 'journaled, begins'}", model.tidied(world))


def _beginning(handler: Handler) -> str:
    """Return the first step of a command's own: a repeated pivot only looks."""
    if handler.op == "pivot" and handler.first:
        return "prepare"
    return "repair" if handler.op == "repair" else "conclude"


def _begun(journal: Journal, sent: Sent) -> Journal:
    proof = journal.proof if sent.job == journal.job else None
    return journal._replace(attempt=sent.attempt, job=sent.job, answer=None, proof=proof)


def _has_intent(world: World, number: int) -> bool:
    return bool(world.hosts[number].journal.frozen) or (world.vm.at == number and world.vm.mark)


def _thaw_orphans(world: World, number: int, handler: Handler) -> Step:
    """Thaw what a dead handler may have left frozen; the intent is cleared with the answer."""
    handler = handler._replace(at=_beginning(handler), orphan=True)
    text = f"host {number + 1}: thaws what a dead handler may have left frozen"
    if world.vm.at != number:
        return Step(text, at_host(world, number, handler=handler))
    if not _can_thaw(world, number):
        world = hand_over(at_host(world, number, handler=handler._replace(orphan=False)), number)
        return Step(f"host {number + 1}: cannot thaw now, leaves it to the guard", world)
    return Step(text, at_host(thawed(world), number, handler=handler))


def _can_thaw(world: World, number: int) -> bool:
    return world.hosts[number].libvirtd and world.vm.at == number and world.vm.state == "running"


def _done(model: Model, world: World, number: int, handler: Handler) -> Step:
    """Put the answer on the journal, then send it."""
    host, reply = world.hosts[number], handler.reply
    assert reply is not None
    settled = reply.what != Outcome.UNKNOWN
    journal = host.journal._replace(answer=reply)
    if settled:
        journal = journal._replace(issued=False)
    if reply.receipt is not None:
        is_now = handler.same_run or reply.what == Outcome.ALL_NEW
        journal = journal._replace(proof=(reply.receipt, reply.what == Outcome.ALL_NEW, is_now))
    if handler.orphan and settled:
        if world.vm.at == number and world.vm.mark and _can_thaw(world, number):
            # It may have been away when the orphans were thawed, and have come back frozen.
            world = thawed(world)._replace(vm=thawed(world).vm._replace(mark=False))
            journal = journal._replace(frozen="")
        elif world.vm.at != number or not world.vm.mark:
            journal = journal._replace(frozen="")
    guard = "" if host.guard in ("lingering", "late") else host.guard
    world = at_host(world, number, journal=journal, handler=None, guard=guard)
    world = model.answered(world, handler.job, handler.attempt, reply)
    return Step(f"host {number + 1}: answers the {handler.op}: {told(reply)}", model.tidied(world))


def told(reply: Reply) -> str:
    """Return an answer in words."""
    receipt = " with a receipt" if reply.receipt else ""
    return f"{reply.what}{receipt}" + (f" ({reply.code})" if reply.code else "")


def _sweep(world: World, number: int) -> Iterator[Step]:
    """Thaw a machine that carries an intent of ours, on the journal or in its metadata, while nobody holds its lock."""
    host, vm = world.hosts[number], world.vm
    marked = vm.at == number and vm.mark
    if not host.journal.frozen and not marked:
        return
    text = f"host {number + 1}: the sweep clears an intent to freeze"
    if vm.at == number and (marked or host.journal.frozen == "this run"):
        if not _can_thaw(world, number):
            return
        world, text = thawed(world), f"host {number + 1}: the sweep thaws the guest and clears the intent"
    if marked:
        world = world._replace(vm=world.vm._replace(mark=False))
    yield Step(text, at_host(world, number, journal=_cleared(host)))


def _cleared(host: Host) -> Journal:
    return host.journal._replace(frozen="")
