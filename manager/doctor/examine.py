"""Look at everything: the record, every host and every storage domain; then, where locks are unexplained, at QEMU.

What is looked at may change meanwhile. So the record is read before and after, and a machine that a job held or moved
in between is left out: a finding about it would be of no moment at all.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from datetime import timedelta
from typing import Final, TypeVar

from common.clock import Clock
from common.ids import HostId, StorageDomainId, VmId
from common.messaging.messages import Answer, Command, Failed, Refused
from common.messaging.queues import host_queue, spm_queue
from common.messaging.surveys import (
    FileSeen,
    HostSurveyed,
    NamedFile,
    StorageSurveyed,
    SurveyHost,
    SurveyStorage,
    VmSeen,
)
from manager.doctor.facts import Facts, Key, Record, StorageSeen, Survey
from manager.doctor.lies import whom_to_ask
from manager.doctor.view import View, key_of, keys_of
from manager.host_checks import NoAnswer
from manager.store import doctor_record
from manager.store.session import Database

Ask = Callable[[str, Command], Answer]
"""Ask the consumer of a queue, and wait a bounded time; raises NoAnswer."""

AT_ONCE: Final = 8
"""Questions under way at a time: each holds a thread, and now and then a connection of the database's pool."""
MAX_PAGES: Final = 1_000
"""Should a consumer never come to an end."""
NAMED_AT_ONCE: Final = 200
QEMU_AT_ONCE: Final = 20

_T = TypeVar("_T")
_R = TypeVar("_R")


class Examiner:
    """Gathers facts. Safe to share between threads."""

    def __init__(self, database: Database, ask: Ask, clock: Clock, *, silent_after: timedelta) -> None:
        """Ask hosts and SPMs by `ask`; one that has not reported for `silent_after` is not even asked."""
        self._database = database
        self._ask = ask
        self._clock = clock
        self._silent_after = silent_after

    def examine(self) -> Facts:
        """Return the facts. Raises LivesnapError(database_unavailable); nobody's silence is an error."""
        before, silent = self._read()
        survey = self._survey(before, silent)
        view = self._view(before, survey)
        survey = self._with_named(survey, view)
        survey = self._with_qemu(survey, self._view(before, survey))
        record, _ = self._read()
        return self._facts(record, survey, _unsettled(before, record, survey))

    def _read(self) -> tuple[Record, dict[str, str]]:
        now = self._clock.now()
        with self._database.read() as connection:
            record = doctor_record.read(connection, now)
            seen_at = doctor_record.seen_at(connection)
        silent = {
            f"host {host}": f"it has not reported since {at:%Y-%m-%d %H:%M:%S} UTC"
            for host, at in seen_at.items()
            if at < now - self._silent_after
        }
        return record, silent

    def _facts(self, record: Record, survey: Survey, unsettled: frozenset[VmId]) -> Facts:
        return Facts(record=record, survey=survey, unsettled=unsettled, now=self._clock.now())

    def _view(self, record: Record, survey: Survey) -> View:
        return View(self._facts(record, survey, _unsettled(record, record, survey)))

    # ---- asking -----------------------------------------------------------------------------------------------------

    def _survey(self, record: Record, silent: dict[str, str]) -> Survey:
        hosts = [host for host in record.hosts if f"host {host}" not in silent]
        places = [place for place, known in record.storage.items() if not known.problem]
        of_hosts = _each(self._host, hosts)
        of_places = _each(lambda place: self._storage(record, place), places)
        silent = dict(silent)
        silent |= {_named(record, place): known.problem for place, known in record.storage.items() if known.problem}
        silent |= {f"host {host}": seen for host, seen in zip(hosts, of_hosts, strict=True) if isinstance(seen, str)}
        silent |= {
            _named(record, place): seen for place, seen in zip(places, of_places, strict=True) if isinstance(seen, str)
        }
        return Survey(
            hosts={host: seen for host, seen in zip(hosts, of_hosts, strict=True) if not isinstance(seen, str)},
            storage={place: seen for place, seen in zip(places, of_places, strict=True) if not isinstance(seen, str)},
            silent=silent,
        )

    def _host(self, host: HostId) -> tuple[VmSeen, ...] | str:
        """Return every vm of a host, or why it could not be asked."""
        found: list[VmSeen] = []
        after = ""
        for _ in range(MAX_PAGES):
            page = self._asked(host_queue(host), SurveyHost(after=after), HostSurveyed)
            if isinstance(page, str):
                return page
            found += page.vms
            if not page.following:
                return tuple(found)
            after = page.following
        return "its survey comes to no end"

    def _storage(self, record: Record, place: StorageDomainId) -> StorageSeen | str:
        """Return everything on a storage domain, or why its SPM could not be asked."""
        seen, after = StorageSeen(), ""
        queue = spm_queue(record.storage[place].pool)
        for _ in range(MAX_PAGES):
            page = self._asked(queue, SurveyStorage(storage_domain_id=place, after=after), StorageSurveyed)
            if isinstance(page, str):
                return page
            seen = StorageSeen(
                locking_is_proven=page.locking_is_proven,
                volumes=seen.volumes + page.volumes,
                strays=seen.strays + page.strays,
                broken=seen.broken + page.broken,
                trash=seen.trash + page.trash,
            )
            if not page.following:
                return seen
            after = page.following
        return "its survey comes to no end"

    def _asked(self, queue: str, command: Command, kind: type[_T]) -> _T | str:
        try:
            answer = self._ask(queue, command)
        except NoAnswer as silence:
            return str(silence)
        if isinstance(answer, kind):
            return answer
        return answer.message if isinstance(answer, Failed | Refused) else f"it answered {answer.op}"

    def _with_named(self, survey: Survey, view: View) -> Survey:
        """Look at the files outside `images/` that a chain or the record names."""
        storage = dict(survey.storage)
        silent = dict(survey.silent)
        for place, names in _wanted(view).items():
            named: list[FileSeen] = []
            queue = spm_queue(view.record.storage[place].pool)
            for start in range(0, len(names), NAMED_AT_ONCE):
                question = SurveyStorage(storage_domain_id=place, named=tuple(names[start : start + NAMED_AT_ONCE]))
                page = self._asked(queue, question, StorageSurveyed)
                if isinstance(page, str):
                    silent[_named(view.record, place)] = page
                    storage.pop(place, None)
                    break
                named += page.named
            if place in storage:
                storage[place] = replace(storage[place], named=tuple(named))
        return replace(survey, storage=storage, silent=silent)

    def _with_qemu(self, survey: Survey, view: View) -> Survey:
        """Ask QEMU itself, of the machines that may have an unexplained file open, and of no other."""
        hosts = dict(survey.hosts)
        for host, vms in whom_to_ask(view).items():
            wanted = sorted(vms)
            for start in range(0, len(wanted), QEMU_AT_ONCE):
                question = SurveyHost(ask_qemu=tuple(wanted[start : start + QEMU_AT_ONCE]))
                page = self._asked(host_queue(host), question, HostSurveyed)
                if not isinstance(page, str):
                    told = {vm.vm_id: vm for vm in page.vms}
                    hosts[host] = tuple(told.get(vm.vm_id, vm) for vm in hosts[host])
        return replace(survey, hosts=hosts)


def _named(record: Record, place: StorageDomainId) -> str:
    return f"storage domain {record.storage[place].name}"


def _each(act: Callable[[_T], _R], items: list[_T]) -> list[_R]:
    """Act on all items, some at a time; the log lines keep their context."""
    if not items:
        return []
    with ThreadPoolExecutor(max_workers=min(AT_ONCE, len(items)), thread_name_prefix="survey") as pool:
        futures = [pool.submit(copy_context().run, act, item) for item in items]
        return [future.result() for future in futures]


def _unsettled(before: Record, after: Record, survey: Survey) -> frozenset[VmId]:
    """Return the machines that a job of ours held, or a command of ours moved, at any moment in between."""
    busy = {vm for record in (before, after) for vm, known in record.vms.items() if known.busy_with}
    moved = {vm for vm, known in after.vms.items() if vm not in before.vms or before.vms[vm].attempt != known.attempt}
    at_work = {vm.vm_id for seen in survey.hosts.values() for vm in seen if vm.is_busy}
    return frozenset(busy | moved | at_work)


def _wanted(view: View) -> dict[StorageDomainId, list[NamedFile]]:
    """Return the files that are named somewhere and were not seen, by storage domain, each with its format."""
    wanted: dict[Key, str] = {}
    for key, image_format in _named_by(view):
        if key not in view.files and key[0] in view.facts.survey.storage and image_format in ("qcow2", "raw"):
            wanted.setdefault(key, image_format)
    found: dict[StorageDomainId, list[NamedFile]] = {}
    for key, image_format in sorted(wanted.items()):
        try:
            file = NamedFile(path=key[1], format="raw" if image_format == "raw" else "qcow2")
        except ValueError:
            continue  # a name that no command can carry: it stays unseen, and nothing is done about it
        found.setdefault(key[0], []).append(file)
    return found


def _named_by(view: View) -> Iterator[tuple[Key, str]]:
    for id_ in view.owned:
        known = view.record.volumes.get(id_)
        if known is not None:
            yield key_of(known.volume), known.volume.format.value
    for vm in view.machines():
        for disk in vm.disks:
            layers = (*disk.live, *disk.persistent)
            yield from _located(zip(keys_of(layers), (layer.format for layer in layers), strict=True))


def _located(pairs: Iterable[tuple[Key | None, str]]) -> Iterator[tuple[Key, str]]:
    for key, image_format in pairs:
        if key is not None:
            yield key, image_format
