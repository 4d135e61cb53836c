"""A machine with two snapshots that goes back and forth, its host and its SPM played by the test."""

from typing import Any

import pytest

from common.errors import RequestRefused
from common.messaging.messages import CreateVolumes, DeleteVolumes, DiskSwitch, Outcome, Probe, Redefine
from common.messaging.reports import DiskReport, VmState
from manager.flows.revert_states import Goal
from manager.reverts import Ask
from manager.views import JobView, VmView
from tests.fakes.clock import FakeClock
from tests.integration.manager_kit import Fleet, counted, created, deleted, disk, observed, vm


class Story:
    """One machine with two snapshots, `old` and `new`, that is off now; its agents and SPM do as they are told."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.leaf = "web1.qcow2"
        for name in ("old", "new"):
            fleet.complete(fleet.create(name=name))
            self.leaf = self.on_record()
            if isinstance(fleet.clock, FakeClock):
                fleet.clock.advance(60)
            self.report(VmState.RUNNING)
        self.report()

    def report(self, state: VmState = VmState.OFF, **changes: Any) -> None:
        """Let the host report the machine on its present leaf."""
        highest = max((command.attempt for command in self.fleet.commands()), default=0)
        runtime = "run" if state is VmState.RUNNING else ""
        disks: tuple[DiskReport, ...] = changes.pop("disks", (disk(self.leaf),))
        self.fleet.report_host(vm("web1", *disks, state=state, runtime_id=runtime, attempt=highest, **changes))

    def on_record(self) -> str:
        """Return where the leaf on record lies."""
        return self.shown().disks[0].chain[-1].path

    def shown(self) -> VmView:
        """Return the machine as users see it."""
        return self.fleet.service.show_vm("web1")

    def start(self, goal: Goal, reference: str = "web1/old", **fields: Any) -> JobView:
        """Ask for it."""
        about = reference if goal in ("preview", "revert") else "web1"
        return self.fleet.service.reverts.start(Ask(goal=goal, reference=about, **fields))

    def refusal(self, goal: Goal, reference: str = "web1/old", **fields: Any) -> str:
        """Return the code that it is refused with; nothing must be left of it."""
        before = counted(self.fleet)
        with pytest.raises(RequestRefused) as refused:
            self.start(goal, reference, **fields)
        assert counted(self.fleet) == before
        assert refused.value.hint
        return refused.value.code

    def switch(self) -> DiskSwitch:
        """Return the one disk of the command that was sent last."""
        body = self.fleet.last().body
        assert isinstance(body, CreateVolumes | Redefine | Probe | DeleteVolumes)
        return body.disks[0]

    def finish(self, job: JobView) -> JobView:
        """Answer everything as it should go, and let the host report where the machine is then."""
        for _ in range(6):
            if (seen := self.fleet.service.show_job(job.id)).finished_at is not None:
                break
            body = self.fleet.last().body
            match body:
                case CreateVolumes():
                    self.fleet.answer(created(self.fleet.last()))
                case Redefine(disks=(moved,)):
                    self.leaf = moved.new.path
                    self.fleet.answer(observed(Outcome.ALL_NEW))
                case Probe():
                    self.fleet.answer(observed(Outcome.NONE))
                case _:
                    self.fleet.answer(deleted(self.fleet.last()))
        self.report()
        return seen
