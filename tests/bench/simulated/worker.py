"""Many host agents, or an SPM, in one process: `celery -A tests.bench.simulated.worker worker`. Nothing is behind them.

SIM_ROLE is `hosts` or `spm`. A host's commands go through the agent's own operations on the simulated hypervisor, and
its answers and reports are signed with its own key. What a real fleet has and this has not: a process, a journal on a
disk and a libvirt for each host.
"""

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any, Final

from celery import Celery
from celery.signals import worker_ready

from common import logs
from common.clock import SystemClock
from common.ids import HostId, VmId, new_id
from common.messaging.broker import Publisher, make_app
from common.messaging.keys import Keyring, SigningKey
from common.messaging.messages import Answer, CreateVolumes, Pivot, Probe
from common.messaging.queues import host_queue
from common.messaging.reports import HostReport, SpmReport
from common.messaging.shell import Shell
from common.messaging.wire import Envelope
from common.settings import SharedSettings
from hostagent.operations.pivot import pivot
from hostagent.operations.probe import probe
from hostagent.reporter import DEBOUNCE_S
from tests.bench.simulated.fleet import SPM, Size
from tests.bench.simulated.guest import CREATE_S
from tests.bench.simulated.machine import BOOT, Machine, journal, mount
from tests.integration.manager_kit import POOL, created

FOLDER = Path(os.environ["SIM_DIR"])
SIZE = Size(hosts=int(os.environ["SIM_HOSTS"]), vms=int(os.environ["SIM_VMS"]))
REPORT_EVERY_S: Final = 30.0
"""The agents' default: while the file `reporting` is there, every host reports everything so often, spread evenly."""
TASKS: Final = ("host.pivot", "host.probe", "spm.create")
CLOCK = SystemClock()
RECORDS = journal()

ShellOf = Callable[[str, dict[type, Any]], Shell]


class Host:
    """One host: its machines, and what it says of them."""

    def __init__(self, number: int, host: HostId, shell_of: ShellOf) -> None:
        """Make its machines; nothing is sent yet."""
        self.host = host
        self.machines = {vm.vm_id: vm for vm in (Machine(host, name, RECORDS) for name in SIZE.names_on(number))}
        self.shell = shell_of(host_queue(host), {Pivot: self._pivot, Probe: self._probe})
        self.changed: set[VmId] = set()
        self._incarnation, self._sequence = new_id(), 0

    def report(self, only: set[VmId] | None = None) -> None:
        """Report some machines, or all."""
        self._sequence += 1
        told = HostReport(
            host_id=self.host,
            boot_id=BOOT,
            incarnation=self._incarnation,
            sequence=self._sequence,
            observed_at=CLOCK.now(),
            libvirt_up=True,
            full=only is None,
            vms=tuple(vm.report() for vm in self.machines.values() if only is None or vm.vm_id in only),
            storage_domains=(mount(),),
        )
        self.shell.send_report(told)

    def _pivot(self, envelope: Envelope, command: Pivot) -> Answer:
        machine = self.machines[command.vm_id]
        machine.see(command.disks)
        try:
            return pivot(envelope, command, machine.deps)
        finally:
            self.changed.add(command.vm_id)

    def _probe(self, envelope: Envelope, command: Probe) -> Answer:
        return probe(envelope, command, self.machines[command.vm_id].deps)


def create(envelope: Envelope, command: CreateVolumes) -> Answer:
    """Say that every volume is made, after the time that it takes."""
    time.sleep(CREATE_S * len(command.disks))
    return created(envelope)


def report_changes(hosts: list[Host]) -> None:
    """Report what has changed, some milliseconds later and together, as the agent's reporter does."""
    while True:
        time.sleep(DEBOUNCE_S)
        for host in hosts:
            changed, host.changed = host.changed, set()
            if changed:
                host.report(changed)


def report_everything(hosts: list[Host]) -> None:
    """Let every host report in its turn, all of them in REPORT_EVERY_S, as long as that is wanted."""
    pause_s = REPORT_EVERY_S / len(hosts)
    due = time.monotonic()
    for host in cycle(hosts):
        due = max(due + pause_s, time.monotonic() - 1)  # what was not wanted is not made up for
        time.sleep(max(0.0, due - time.monotonic()))
        if (FOLDER / "reporting").exists():
            host.report()


def build(role: str) -> Celery:
    """Return the app of all hosts, or of the SPM."""
    queues = [SPM] if role == "spm" else [host_queue(host) for host in SIZE.host_ids]
    settings = SharedSettings(keys_dir=FOLDER, task_events=False)
    logs.configure(log_format="text", process=role)
    made = make_app(settings, name=role, queue=queues[0])
    # The options for one queue's consumer; the others are only more of the same.
    parts = [make_app(settings, name=role, queue=queue).conf.task_queues for queue in queues]
    made.conf.task_queues = [queue for part in parts for queue in part]
    publisher, keyring = Publisher(made), Keyring(FOLDER)

    def shell_of(me: str, handlers: dict[type, Any]) -> Shell:
        key = SigningKey.load(FOLDER / f"{me}.key", me)
        return Shell(me, key, keyring, CLOCK, handlers=handlers, publish=publisher.publish)

    shells: dict[str, Shell] = defaultdict(lambda: shell_of(SPM, {CreateVolumes: create}))
    hosts = []
    if role == "hosts":
        hosts = [Host(number, host, shell_of) for number, host in enumerate(SIZE.host_ids)]
        shells.update({host_queue(host.host): host.shell for host in hosts})

    def deliver(task: Any, *parts: Any) -> None:
        shells[task.request.delivery_info["routing_key"]].handle(*parts)

    for name in TASKS:
        made.task(deliver, name=name, bind=True, typing=False)
    worker_ready.connect(lambda **_: _begin(role, shells, hosts), weak=False)
    return made


def _begin(role: str, shells: dict[str, Shell], hosts: list[Host]) -> None:
    if role == "spm":
        seen = SpmReport(
            pool_id=POOL,
            incarnation=new_id(),
            sequence=1,
            epoch=1,
            observed_at=CLOCK.now(),
            storage_domains=(mount(),),
        )
        shells[SPM].send_report(seen)
    for host in hosts:
        host.report()
    threading.Thread(target=report_changes, args=(hosts,), daemon=True).start()
    if hosts:
        threading.Thread(target=report_everything, args=(hosts,), daemon=True).start()
    (FOLDER / f"{role}.ready").touch()


app = build(os.environ["SIM_ROLE"])
