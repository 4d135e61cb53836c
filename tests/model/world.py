"""What the model's world consists of: plain, hashable values, and nothing that a clock or a counter lets grow for ever.

A volume is a letter: `O` is the leaf that the machine starts on, `N` the first job's new leaf, `M` the second job's,
`F` the overlay of somebody who used virsh. A chain is a string of them, top first: `NO` is the new leaf above the old
one. Tuples of chains have one entry per disk. A run of the machine has no number: who must know whether it is still
the same one holds a flag, which `new_run` clears.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from common.messaging.messages import Outcome

SPM = -1
NOWHERE = -1

Op = Literal["create", "delete", "pivot", "probe", "repair"]
VmState = Literal["running", "paused", "io_error"]
Result = Literal["", "ok", "error", "lost"]
Why = Literal["", "refused", "no_agent", "freeze_failed", "io_error"]


class Receipt(NamedTuple):
    """What `common.receipt.Receipt` is made of, as far as `label` asks for it."""

    vm_state: str
    quiesce: bool
    own_switch: bool
    frozen: int
    thaw_confirmed: bool
    thawed: int
    guard_fired: bool


class Reply(NamedTuple):
    """An answer, short: `what` is the outcome of an observation, or why a command was refused."""

    kind: Literal["created", "deleted", "observed", "failed", "refused"]
    what: str = ""
    code: str = ""
    receipt: Receipt | None = None
    kept: tuple[str, ...] = ()
    """Per disk why its new volume was kept, '' where it is gone."""
    begun: bool = False
    """A commit of the job has begun on that host."""


class Sent(NamedTuple):
    """A command on its way: never consumed, so that it may arrive again at any time."""

    attempt: int
    job: int
    to: int
    op: Op
    quiesce: bool = False
    committed: bool = False
    undo: bool = False


class Said(NamedTuple):
    """An answer on its way, with the attempt that it answers (which stands for the step)."""

    attempt: int
    job: int
    reply: Reply


class Job(NamedTuple):
    """A job in the Manager's database: `saga` numbers the saga's real state, `sent` is the outbox's open row."""

    saga: int
    old: str
    new: str
    sent: Sent | None = None
    timer: bool = False
    label: str = ""


class Volume(NamedTuple):
    """A new volume on storage. `data`: guest writes that are nowhere else, or that were committed to its parent."""

    file: Literal["", "there", "trash"] = ""
    meta: Literal["", "legal", "illegal", "tombstone"] = ""
    generation: int = 0
    data: Literal["", "guest", "committed"] = ""


class SpmWork(NamedTuple):
    """What an SPM is doing: the step that comes next, for which disk, and what it has found so far."""

    job: int
    op: Op
    attempt: int
    at: str
    disk: int = 0
    committed: bool = False
    fresh: bool = False
    kept: tuple[str, ...] = ()


class Journal(NamedTuple):
    """A host's durable record. `issued`: a call went out on this boot to this libvirtd. `frozen`: an intent to freeze
    of the machine's present run, or of an earlier one. `commits`: the job that began to commit."""

    attempt: int = 0
    job: int = NOWHERE
    answer: Reply | None = None
    issued: bool = False
    frozen: Literal["", "this run", "earlier run"] = ""
    commits: int = NOWHERE
    proof: tuple[Receipt, bool, bool] | None = None
    """The newest receipt of the job, whether its answer was ALL_NEW, and whether the machine still is in that run."""


class Handler(NamedTuple):
    """A command that an agent carries out: what comes next (`at`), what it knows so far. Dies with its agent.
    `first`: no handler has begun this attempt before."""

    job: int
    op: Op
    attempt: int
    at: str
    quiesce: bool = False
    undo: bool = False
    first: bool = True
    vm_state: str = ""
    same_run: bool = False
    defined: bool = False
    frozen: int = 0
    thaw_confirmed: bool = False
    thawed: int = 0
    guard_fired: bool = False
    result: Result = ""
    why: Why = ""
    orphan: bool = False
    reply: Reply | None = None


class Call(NamedTuple):
    """A call inside libvirtd, which goes on without the one who made it. `own`: its handler still waits for it."""

    kind: Literal["define", "switch"]
    job: int
    own: bool = True
    stage: Literal["queued", "opened", "switched"] = "queued"


class Host(NamedTuple):
    """A hypervisor: its agent, its libvirtd with its calls, its guard, the persistent definition it has ('' per disk:
    the definition has no such disk; None: there is no definition).
    """

    agent: bool = True
    libvirtd: bool = True
    dead: bool = False
    definition: tuple[str, ...] | None = None
    journal: Journal = Journal()
    handler: Handler | None = None
    calls: tuple[Call, ...] = ()
    guard: Literal["", "armed", "lingering", "firing", "fired", "late"] = ""
    guard_up: bool = True


class Vm(NamedTuple):
    """The machine. `chain` is QEMU's, `live` libvirt's belief, `loose` what QEMU has open beside them.

    `late`: a freeze is in the guest agent's queue. `mark`: our intent in the live metadata. `content` is a ghost,
    what the old leaf holds since the last switch: a clean file system, one as after a power cut, or newer data
    (spoilt).
    """

    at: int
    chain: tuple[str, ...]
    live: tuple[str, ...]
    state: VmState = "running"
    loose: tuple[str, ...] = ()
    frozen: Literal["", "by us", "by others"] = ""
    late: bool = False
    mark: bool = False
    saved: bool = False
    content: Literal["", "clean", "crash", "spoilt"] = ""


class Budget(NamedTuple):
    """How often each kind of mishap may still happen."""

    agent: int = 0
    guard: int = 0
    libvirtd: int = 0
    connection: int = 0
    reboot: int = 0
    death: int = 0
    spm: int = 0
    spm_stop: int = 0
    loss: int = 0
    timeout: int = 0
    refusal: int = 0
    cancel: int = 0
    word: int = 0
    freeze_fails: int = 0
    freeze_late: int = 0
    slow: int = 0
    overtaken: int = 0
    stop: int = 0
    save: int = 0
    pause: int = 0
    migrate: int = 0
    io_error: int = 0
    commit_fails: int = 0
    partial: int = 0
    virsh_thaw: int = 0
    virsh_freeze: int = 0
    virsh_snapshot: int = 0


class World(NamedTuple):
    """Everything at one moment."""

    jobs: tuple[Job, ...]
    attempt: int
    inventory: int
    sent: frozenset[Sent]
    said: frozenset[Said]
    spm: SpmWork | None
    old_spm: SpmWork | None
    volumes: tuple[Volume, ...]
    vm: Vm
    hosts: tuple[Host, ...]
    budget: Budget


class Step(NamedTuple):
    """Something that may happen next: the line that tells it, the world after it, and whether it is a mishap."""

    text: str
    world: World
    mishap: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The protocol's rules, each a switch. All are in force; a test turns one off and expects the model to notice."""

    fence: bool = True
    once: bool = True
    barrier: bool = True
    timeout_is_unknown: bool = True
    precondition: bool = True
    definition_first: bool = True
    definition_counts: bool = True
    parent_counts: bool = True
    whole_chain: bool = True
    ask_qemu: bool = True
    left_is_unknown: bool = True
    left_may_return: bool = True
    guard: bool = True
    sweep: bool = True
    mark: bool = True
    record: bool = True
    thaw_after_failure: bool = True
    count_thawed: bool = True
    guard_tells: bool = True
    own_switch: bool = True
    commit_is_recorded: bool = True
    cut_off_is_told: bool = True
    image_lock: bool = True
    lock_held: bool = True
    lock_sees_backing: bool = True
    illegal_mark: bool = True
    unmark: bool = True
    empty: bool = True
    generation: bool = True
    tombstone: bool = True
    link: bool = True
    lease: bool = True
    resend: bool = True
    only_current_answer: bool = True
    one_job: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One layer of the exploration: how large the world is, how it begins, and what may go wrong how often.

    `agent_returns`: a dead agent is started again. `keeps_definition`: a migration leaves the persistent definition
    behind (virsh's default); `definition_travels`: else it takes the persistent one along (measured), and not the
    live one. `asks_operator`: an operator may be asked; otherwise that is a violation.
    """

    hosts: int = 1
    disks: int = 1
    jobs: int = 1
    mode: Literal["auto", "require", "best-effort", "never"] = "auto"
    guest_agent: bool = True
    begins: Literal["running", "paused", "off"] = "running"
    budget: Budget = field(default_factory=Budget)
    agent_returns: bool = True
    keeps_definition: bool = False
    definition_travels: bool = True
    asks_operator: bool = False


def beginning(config: Config) -> World:
    """Return the world before the first request: one machine on its old leaf, on the first host."""
    old = ("O",) * config.disks
    nothing = ("",) * config.disks
    is_off = config.begins == "off"
    vm = Vm(
        at=NOWHERE if is_off else 0,
        chain=nothing if is_off else old,
        live=nothing if is_off else old,
        state="paused" if config.begins == "paused" else "running",
        loose=nothing,
    )
    hosts = tuple(Host(definition=old if number == 0 else None) for number in range(config.hosts))
    return World(
        jobs=(),
        attempt=0,
        inventory=0,
        sent=frozenset(),
        said=frozenset(),
        spm=None,
        old_spm=None,
        volumes=(Volume(),) * (config.disks * config.jobs),
        vm=vm,
        hosts=hosts,
        budget=config.budget,
    )


# ---- changes --------------------------------------------------------------------------------------------------------


def at_host(world: World, number: int, **changes: object) -> World:
    """Return the world with something changed on one host."""
    hosts = list(world.hosts)
    hosts[number] = hosts[number]._replace(**changes)  # type: ignore[arg-type]
    return world._replace(hosts=tuple(hosts))


def spent(world: World, kind: str) -> World:
    """Return the world with one mishap of that kind less to come."""
    budget = world.budget
    return world._replace(budget=budget._replace(**{kind: getattr(budget, kind) - 1}))


def put(items: tuple[str, ...], number: int, value: str) -> tuple[str, ...]:
    """Return the tuple with one entry replaced."""
    return (*items[:number], value, *items[number + 1 :])


def new_run(world: World) -> World:
    """Return the world with everything forgotten that holds for one run of the machine only."""
    hosts = []
    for host in world.hosts:
        journal = host.journal
        if journal.frozen:
            journal = journal._replace(frozen="earlier run")
        if journal.proof is not None:
            journal = journal._replace(proof=(*journal.proof[:2], False))
        handler = host.handler._replace(same_run=False) if host.handler else None
        hosts.append(host._replace(journal=journal, handler=handler))
    return world._replace(hosts=tuple(hosts))


def volume_of(world: World, job: int, disk: int) -> Volume:
    """Return the new volume of one disk of a job."""
    return world.volumes[job * len(world.vm.chain) + disk]


def with_volume(world: World, job: int, disk: int, volume: Volume) -> World:
    """Return the world with that volume changed."""
    number = job * len(world.vm.chain) + disk
    return world._replace(volumes=(*world.volumes[:number], volume, *world.volumes[number + 1 :]))


def is_open(vm: Vm, letter: str, disk: int) -> bool:
    """Tell whether QEMU has that volume of that disk open, wherever in the chain, or beside it."""
    return vm.at != NOWHERE and (letter in vm.chain[disk] or letter in vm.loose[disk])


def new_leaf(job: int) -> str:
    """Return the letter of a job's new leaf."""
    return "NM"[job]


def job_of(letter: str) -> int | None:
    """Return the job whose new leaf a letter is."""
    return {"N": 0, "M": 1}.get(letter)


def header_chain(world: World, top: str) -> str:
    """Return the chain that the files' own headers name, from a top that is ours."""
    chain = top
    while (job := job_of(chain[-1])) is not None:
        chain += world.jobs[job].old
    return chain


SETTLED = frozenset({Outcome.NONE, Outcome.NONE_NO_AGENT, Outcome.NONE_ROLLED_BACK, Outcome.ALL_NEW})
