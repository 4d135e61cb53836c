"""One model: a layer, the rules in force, the saga and the judge that decide in it; and how its world is kept small."""

from collections.abc import Callable

from hostagent.operations import judge
from hostagent.operations.judge import Facts
from manager.flows.snapshot import advance
from tests.model.saga import Advance, Sagas
from tests.model.world import SPM, Config, Host, Reply, Rules, Said, Sent, SpmWork, World

Judge = Callable[[Facts], str]


class Model:
    """What stays the same while a world is explored; `advance` and `judge` are the product's unless wrapped."""

    def __init__(
        self, config: Config, rules: Rules | None = None, *, advance: Advance = advance, judge: Judge = judge.judge
    ) -> None:
        """Explore `config` under `rules` (all of them when not given)."""
        self.config = config
        self.rules = rules or Rules()
        self.sagas = Sagas(disks=config.disks, mode=config.mode, advance=advance)
        self.judge = judge
        self.judged: dict[Facts, str] = {}

    def answered(self, world: World, job: int, attempt: int, reply: Reply) -> World:
        """Return the world with an answer on its way to the Manager, unless nobody waits for it any more."""
        sent = world.jobs[job].sent
        if self.rules.only_current_answer and (sent is None or sent.attempt != attempt):
            return world
        return world._replace(said=world.said | {Said(attempt, job, reply)})

    def tidied(self, world: World) -> World:
        """Return the world without messages that can have no effect any more, its attempts numbered without gaps.

        Only the order of attempts is ever asked for, so both leave every future as it was.
        """
        waiting = {(number, job.sent.attempt) for number, job in enumerate(world.jobs) if job.sent}
        said = world.said
        if self.rules.only_current_answer and said:
            said = frozenset(each for each in said if (each.job, each.attempt) in waiting)
        sent = frozenset(
            each for each in world.sent if (each.job, each.attempt) in waiting or self._matters(world, each)
        )
        return _renumbered(world._replace(said=said, sent=sent))

    def _matters(self, world: World, sent: Sent) -> bool:
        """Tell whether a command whose answer nobody waits for could still have an effect."""
        return self._matters_to_spm(world, sent) if sent.to == SPM else self._matters_to_host(world, sent)

    def _matters_to_host(self, world: World, sent: Sent) -> bool:
        host = world.hosts[sent.to]
        if host.dead:
            return False
        if not (self.rules.fence and self.rules.once):
            return True
        highest = host.journal.attempt
        return sent.attempt > highest or (sent.attempt == highest and host.journal.answer is None)

    def _matters_to_spm(self, world: World, sent: Sent) -> bool:
        if not (self.rules.generation and self.rules.tombstone):
            return True
        disks = len(world.vm.chain)
        volumes = world.volumes[sent.job * disks : (sent.job + 1) * disks]
        if any(volume.generation > sent.attempt for volume in volumes):
            return False
        done = "legal" if sent.op == "create" else "tombstone"
        return not all(volume.generation == sent.attempt and volume.meta == done for volume in volumes)


def _renumbered(world: World) -> World:
    """Return the world with its attempts renamed to 1, 2, 3, … in their order."""
    used = {0}
    used.update(sent.attempt for sent in world.sent)
    used.update(said.attempt for said in world.said)
    used.update(job.sent.attempt for job in world.jobs if job.sent)
    used.update(work.attempt for work in (world.spm, world.old_spm) if work)
    used.update(volume.generation for volume in world.volumes)
    used.update(host.journal.attempt for host in world.hosts)
    used.update(host.handler.attempt for host in world.hosts if host.handler)
    if len(used) == world.attempt + 1 and max(used) == world.attempt:
        return world
    return _renamed(world, {attempt: number for number, attempt in enumerate(sorted(used))})


def _renamed(world: World, names: dict[int, int]) -> World:
    def sent(item: Sent) -> Sent:
        return item._replace(attempt=names[item.attempt])

    def work(item: SpmWork | None) -> SpmWork | None:
        return item and item._replace(attempt=names[item.attempt])

    def host(item: Host) -> Host:
        journal = item.journal._replace(attempt=names[item.journal.attempt])
        handler = item.handler and item.handler._replace(attempt=names[item.handler.attempt])
        return item._replace(journal=journal, handler=handler)

    return world._replace(
        attempt=len(names) - 1,
        sent=frozenset(sent(item) for item in world.sent),
        said=frozenset(item._replace(attempt=names[item.attempt]) for item in world.said),
        jobs=tuple(job._replace(sent=job.sent and sent(job.sent)) for job in world.jobs),
        spm=work(world.spm),
        old_spm=work(world.old_spm),
        volumes=tuple(volume._replace(generation=names[volume.generation]) for volume in world.volumes),
        hosts=tuple(host(item) for item in world.hosts),
    )
