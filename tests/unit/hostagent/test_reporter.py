"""What libvirt tells goes to the Manager: which machines have changed, and where a merge has come to something."""

from __future__ import annotations

import queue
from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from common.ids import HostId, VmId
from common.messaging.reports import HostReport
from hostagent.connection import Connection, VmEvent
from hostagent.inventory import Inventory
from hostagent.reporter import Reporter

ONE, TWO = (VmId(f"00000000-0000-4000-8000-00000000000{number}") for number in (1, 2))
SOON_S, NOT_S = 10.0, 0.3


class Libvirt:
    """A host whose events are the test's, and whose reports are empty; also the connection and the inventory."""

    def __init__(self) -> None:
        self.sent: queue.Queue[HostReport] = queue.Queue()
        self.busy: set[VmId] = set()
        self.asked: list[Collection[VmId] | None] = []
        self._listeners: list[Any] = []

    def on_event(self, callback: Any) -> None:
        self._listeners.append(callback)

    def on_reconnect(self, callback: Any) -> None:
        pass

    on_lost = on_reconnect

    def happens(self, kind: str, vm: VmId) -> None:
        for callback in self._listeners:
            callback(VmEvent(vm_id=vm, kind=kind))

    def look(self, only: Collection[VmId] | None = None) -> HostReport:
        self.asked.append(only)
        return HostReport(
            host_id=HostId("h1"),
            boot_id="boot",
            incarnation="one",
            sequence=len(self.asked),
            observed_at=datetime(2026, 11, 27, tzinfo=UTC),
            libvirt_up=True,
            full=only is None,
        )

    def next(self) -> HostReport:
        return self.sent.get(timeout=SOON_S)

    def says_nothing(self) -> bool:
        try:
            self.sent.get(timeout=NOT_S)
        except queue.Empty:
            return True
        return False


@pytest.fixture
def libvirt() -> Libvirt:
    return Libvirt()


@pytest.fixture
def reporter(libvirt: Libvirt) -> Iterator[Reporter]:
    made = Reporter(
        cast(Inventory, libvirt),
        libvirt.sent.put,
        lambda _: None,
        timedelta(hours=1),
        is_busy=libvirt.busy.__contains__,
    )
    made.attach(cast(Connection, libvirt))
    made.everything()
    made.start()
    assert libvirt.next().full
    yield made
    made.stop()


def test_a_block_job_that_came_to_something_is_told_once(libvirt: Libvirt, reporter: Reporter) -> None:
    libvirt.happens("lifecycle", ONE)
    assert libvirt.next().merges == ()
    libvirt.happens("block_job", ONE)
    assert libvirt.next().merges == (ONE,)
    reporter.changed(ONE)
    assert libvirt.next().merges == ()
    libvirt.happens("block_job", TWO)
    reporter.everything()
    assert libvirt.next().merges == (TWO,)


def test_that_of_a_busy_machine_is_told_when_its_command_has_ended(libvirt: Libvirt, reporter: Reporter) -> None:
    libvirt.busy.add(ONE)
    libvirt.happens("block_job", ONE)
    libvirt.happens("block_job", TWO)
    assert libvirt.next().merges == (TWO,)
    assert libvirt.says_nothing()
    libvirt.busy.clear()
    reporter.changed(ONE)
    assert libvirt.next().merges == (ONE,)
