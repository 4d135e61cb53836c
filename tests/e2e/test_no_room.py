"""A storage domain without room: refused before anything is made."""

import pytest

from tests.e2e.kit import place, writer_went_on

pytestmark = [pytest.mark.e2e, pytest.mark.needs("guest", "redis-server")]


def test_storage_full() -> None:
    with place() as here, here.livesnap(environment={"LIVESNAP_MIN_FREE_BYTES": str(10**15)}) as livesnap:
        vm = here.guest("squeezed")
        livesnap.shows(vm)
        sources = vm.sources()

        said = livesnap.run("snapshot", "create", "squeezed", "--json")

        assert said.status in (1, 2), said.err
        assert said.json["error"]["code"] == "storage_full"
        assert said.json["error"]["hint"]
        assert here.volumes() == set()
        assert livesnap.json("snapshot", "list", "squeezed") == []
        assert vm.sources() == vm.sources(persistent=True) == sources
        writer_went_on(vm)
