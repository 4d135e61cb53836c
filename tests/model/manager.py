"""The Manager of the model: conductor, outbox and timers round the real saga. Its database is never lost (P6).

A crash of a Manager changes nothing here: what it had not committed did not happen, and what it had not published is a
lost message.
"""

from collections.abc import Iterator

from tests.model.model import Model
from tests.model.saga import NEEDS_OPERATOR, Happened
from tests.model.world import SPM, Job, Sent, Step, World, new_leaf, spent


def manager_steps(model: Model, world: World) -> Iterator[Step]:
    """Yield what the Manager may do next: take an answer, see a timer run out, send again, hear an operator."""
    for number, job in enumerate(world.jobs):
        if model.sagas.is_over(job.saga):
            continue
        yield from _take_answers(model, world, number)
        yield from _time_out(model, world, number)
        yield from _hear_operator(model, world, number)
        if model.rules.resend and job.sent is not None and job.sent not in world.sent:
            yield Step(f"Manager: sends again, unanswered: {told(job.sent)}", _publish(world, job.sent))
    if len(world.jobs) < model.config.jobs and _may_start(model, world):
        yield _start(model, world)
    yield from _hear_reports(world)


def _may_start(model: Model, world: World) -> bool:
    if not world.jobs:
        return True
    return all(model.sagas.is_over(job.saga) for job in world.jobs) or not model.rules.one_job


def _start(model: Model, world: World) -> Step:
    number = len(world.jobs)
    done = [job for job in world.jobs if job.label]
    old, new = (done[-1].new if done else "O"), new_leaf(number)
    saga = model.sagas.begin(number, old, new)
    vm = world.vm._replace(content="")
    world = world._replace(jobs=(*world.jobs, Job(saga=saga, old=old, new=new)), vm=vm)
    return _step(model, world, number, Happened("started"), f"is asked for a snapshot: {new} above {old}")


def _take_answers(model: Model, world: World, number: int) -> Iterator[Step]:
    job = world.jobs[number]
    for said in world.said:
        is_current = job.sent is not None and said.attempt == job.sent.attempt
        if said.job == number and (is_current or not model.rules.only_current_answer):
            happened = Happened("answer", said.reply, world.inventory)
            step = _step(model, world, number, happened, f"hears: {said.reply.what or said.reply.kind}")
            if step.world != world:
                yield step


def _time_out(model: Model, world: World, number: int) -> Iterator[Step]:
    job = world.jobs[number]
    if not job.timer:
        return
    happened = Happened("timeout", host=world.inventory)
    if job.sent is None and not any(_hear_reports(world)):
        # Reports take about a second, the shortest timer two: one that runs out first counts as a delay.
        yield _step(model, world, number, happened, "its timer ends")
    elif job.sent is not None and job.sent.to != SPM and _never_answers(model, world, job.sent):
        if model.sagas.labels[job.saga] != "awaiting_host":
            yield _step(model, world, number, happened, "no answer in time")
    elif world.budget.timeout:
        yield _step(model, spent(world, "timeout"), number, happened, "NO ANSWER IN TIME", mishap=True)


def _never_answers(model: Model, world: World, sent: Sent) -> bool:
    host = world.hosts[sent.to]
    return host.dead or not (host.agent or model.config.agent_returns)


def _hear_operator(model: Model, world: World, number: int) -> Iterator[Step]:
    job = world.jobs[number]
    label = model.sagas.labels[job.saga]
    if world.budget.cancel:
        step = _step(model, spent(world, "cancel"), number, Happened("cancel"), "A USER CANCELS", mishap=True)
        if step.world.jobs != world.jobs:
            yield step
    resolve = Happened("resolve", host=world.inventory)
    if label == NEEDS_OPERATOR:
        yield _step(model, world, number, resolve, "an operator says: ask again")
    elif label == "awaiting_host" and world.budget.word:
        yield _step(model, spent(world, "word"), number, resolve, "AN OPERATOR SAYS: ask again", mishap=True)


def _hear_reports(world: World) -> Iterator[Step]:
    """A host reports the machine: where it runs, else where it is defined."""
    for number, host in enumerate(world.hosts):
        runs_here = world.vm.at == number
        if number == world.inventory or not host.agent or not host.libvirtd:
            continue
        if runs_here or (world.vm.at < 0 and host.definition is not None):
            yield Step(f"host {number + 1}: reports that the machine is here", world._replace(inventory=number))


def _step(model: Model, world: World, number: int, happened: Happened, why: str, *, mishap: bool = False) -> Step:
    """One transaction of the conductor: the state, the outbox row that it closes, the one that it opens."""
    job = world.jobs[number]
    stepped = model.sagas.step(job.saga, happened)
    if stepped.idle:
        if happened.kind == "timeout":
            world = _with_job(world, number, job._replace(timer=False))
        return Step(f"Manager: {why}; nothing changes", world, mishap)
    closes = happened.kind == "answer" or stepped.sent is not None
    closes = closes or model.sagas.is_over(stepped.saga) or model.sagas.labels[stepped.saga] == NEEDS_OPERATOR
    job = job._replace(
        saga=stepped.saga,
        sent=None if closes else job.sent,
        timer=stepped.timer,
        label=stepped.label or job.label,
    )
    whose = f" (job {number + 1})" if number else ""
    text = f"Manager{whose}: {why}; {stepped.detail}"
    world = _with_job(world, number, job)
    if stepped.sent is not None:
        world = _send(world, number, stepped.sent)
    return Step(text, model.tidied(world), mishap)


def _with_job(world: World, number: int, job: Job) -> World:
    return world._replace(jobs=(*world.jobs[:number], job, *world.jobs[number + 1 :]))


def _send(world: World, number: int, command: Sent) -> World:
    """Raise the machine's attempt in the transaction that writes the row; publish."""
    attempt = world.attempt + 1
    sent = command._replace(attempt=attempt, job=number)
    world = _with_job(world, number, world.jobs[number]._replace(sent=sent))._replace(attempt=attempt)
    return _publish(world, sent)


def _publish(world: World, sent: Sent) -> World:
    return world._replace(sent=world.sent | {sent})


def told(sent: Sent) -> str:
    """Return a command in words."""
    return f"{sent.op} to the SPM" if sent.to == SPM else f"{sent.op} to host {sent.to + 1}"
