"""Machines that do not run: paused ones are snapshotted without a freeze, stopped ones by a new definition."""

from collections.abc import Iterator

import pytest

from tests.e2e.kit import Livesnap, Place, place, writer_went_on
from tests.wait import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.needs("guest", "redis-server"), pytest.mark.xdist_group("states")]


@pytest.fixture(scope="module")
def here() -> Iterator[Place]:
    """An isolated host."""
    with place() as opened:
        yield opened


@pytest.fixture(scope="module")
def livesnap(here: Place) -> Iterator[Livesnap]:
    """A running livesnap on it."""
    with here.livesnap() as running:
        yield running


def in_state(livesnap: Livesnap, name: str, state: str) -> None:
    """Wait until livesnap knows that a machine is in a state."""
    eventually(
        lambda: livesnap.json("vm", "show", name)["state"] == state,
        timeout_s=45,
        what=f"{name} {state} in the inventory",
        interval_s=0.2,
    )


def test_paused_stays_paused(here: Place, livesnap: Livesnap) -> None:
    vm = here.guest("paused", disks=2)
    vm.pause()
    in_state(livesnap, "paused", "paused")
    said = livesnap.run("snapshot", "create", "paused", "--name", "one", "--json")
    assert said.status == 0, said.err
    snapshot = livesnap.json("snapshot", "show", "paused/one")
    assert (snapshot["consistency"], snapshot["consistency_reason"]) == ("crash", "paused")
    assert livesnap.json("vm", "show", "paused")["state"] == "paused"
    refused = livesnap.run("snapshot", "create", "paused", "--quiesce", "require", "--json")
    assert refused.json["error"]["code"] == "vm_paused_not_quiesced"
    vm.resume()
    writer_went_on(vm)
    assert here.content_of(snapshot).needs_recovery
    vm.destroy()


def test_stopped_boots_from_its_new_leaf(here: Place, livesnap: Livesnap) -> None:
    vm = here.guest("stopped", disks=2)
    livesnap.shows(vm)
    assert livesnap.run("snapshot", "create", "stopped", "--name", "live").status == 0
    last = vm.wait_acks()
    vm.shutdown()
    in_state(livesnap, "stopped", "off")

    said = livesnap.run("snapshot", "create", "stopped", "--name", "cold", "--json")

    assert said.status == 0, said.err
    snapshot = livesnap.json("snapshot", "show", "stopped/cold")
    assert (snapshot["consistency"], snapshot["consistency_reason"]) == ("crash", "shutdown_unknown")
    leaves = vm.sources(persistent=True)
    assert all(str(here.storage / disk["path"]) != leaves[disk["target"]] for disk in snapshot["disks"])
    finding = here.content_of(snapshot)
    assert not finding.needs_recovery
    assert finding.records[-1] >= last
    vm.start()
    vm.wait_ready(boots=2)
    assert vm.wait_acks() > finding.records[-1]
    assert vm.sources() == leaves
    livesnap.shows(vm)
    assert livesnap.run("snapshot", "create", "stopped", "--name", "live-again").status == 0
    vm.destroy()
