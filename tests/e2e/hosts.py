"""A livesnap with more than one hypervisor host, all on one storage folder.

`livesnap standalone` brings the first host (h1). Every further one is another isolated libvirtd with an agent and a
guard of its own, set up as deploy/README.md tells: its own key, the Manager's public key, the same broker.

    with two_hosts() as fleet:
        vm = fleet.place.guest("web1")              # on h1
        there = vm.migrate_to(fleet.second.host)    # now on h2
"""

import json
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bed.host import IsolatedHost
from tests.bed.paths import short_dir
from tests.bed.process import CLEAN_ENV, run
from tests.bed.vm import BedVm
from tests.e2e.kit import Livesnap, Place, place
from tests.integration.host_kit import AgentProcess, GuardProcess
from tests.wait import eventually


@dataclass(frozen=True, kw_only=True)
class Member:
    """A further host of a livesnap: what a test may stop, kill and start again."""

    id: str
    host: IsolatedHost
    agent: AgentProcess
    guard: GuardProcess


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """A livesnap with two hosts: that of `place` is h1, `second` is h2."""

    place: Place
    livesnap: Livesnap
    second: Member

    def shows_on(self, vm: BedVm, host: str, state: str = "running") -> Any:
        """Wait until livesnap knows that a machine is on a host, and return it as it is shown."""

        def shown() -> Any:
            machine = self.livesnap.ask(f"/v1/vms/{vm.name}")
            return machine if machine and (machine["host"], machine["state"]) == (host, state) else None

        return eventually(shown, timeout_s=45, what=f"{vm.name} {state} on {host}", interval_s=0.1)

    def host(self, host: str) -> Any:
        """Return a host as it is shown now."""
        found = [each for each in self.livesnap.ask("/v1/hosts") or () if each["id"] == host]
        return found[0] if found else None


@contextmanager
def joined(here: Place, livesnap: Livesnap, host_id: str, *, environment: Mapping[str, str]) -> Iterator[Member]:
    """Yield a further host of a running livesnap, once it has reported."""
    with short_dir() as root, IsolatedHost(host_id, here.root) as host:
        settings = _settings(here, livesnap, host_id, root) | {"LIVESNAP_LIBVIRT_URI": host.uri, **environment}
        with GuardProcess(root, settings) as guard, AgentProcess(root, settings, host_id) as agent:
            eventually(
                lambda: any(each["id"] == host_id for each in livesnap.ask("/v1/hosts") or ()),
                timeout_s=30,
                what=f"the first report of {host_id}",
                interval_s=0.1,
            )
            yield Member(id=host_id, host=host, agent=agent, guard=guard)


def _settings(here: Place, livesnap: Livesnap, host_id: str, root: Path) -> dict[str, str]:
    """Make the host's key, declare its queue, and return the settings that its agent and its guard share."""
    ours = tomllib.loads((livesnap.state_dir / "settings/host.toml").read_text())
    key, state_dir = root / f"host.{host_id}.key", root / "state"
    state_dir.mkdir(mode=0o700)
    provision = [sys.executable, "-m", "common.provision"]
    run([*provision, "key", f"host.{host_id}", key, ours["keys_dir"]])
    broker = f"LIVESNAP_BROKER_URL={ours['broker_url']}"
    run(["env", broker, *provision, "queues", f"host.{host_id}"])
    return {
        **CLEAN_ENV,
        "LIVESNAP_BROKER_URL": ours["broker_url"],
        "LIVESNAP_KEY_FILE": str(key),
        "LIVESNAP_KEYS_DIR": ours["keys_dir"],
        "LIVESNAP_HOST_ID": host_id,
        "LIVESNAP_STATE_DIR": str(state_dir),
        "LIVESNAP_STORAGE_DOMAINS": json.dumps({"main": str(here.storage)}),
    }


@contextmanager
def two_hosts(*options: str, environment: Mapping[str, str] | None = None) -> Iterator[Fleet]:
    """Yield a livesnap with two hosts; everything ends with it. `environment` goes to all of its processes."""
    told = dict(environment or {})
    with (
        place() as here,
        here.livesnap(*options, environment=told) as livesnap,
        joined(here, livesnap, "h2", environment=told) as second,
    ):
        yield Fleet(place=here, livesnap=livesnap, second=second)
