"""schemathesis makes requests of the OpenAPI description; none of them is answered with a server error."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings

from manager.heartbeat import Heartbeat
from tests.integration.front_kit import TOKEN, Front, front
from tests.integration.manager_kit import disk, vm

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("openapi")]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with front(tmp_path_factory.mktemp("openapi")) as api:
        api.fleet.report_spm()
        api.fleet.report_host(vm("web1", disk("web1.qcow2")), vm("0", disk("0.qcow2")))
        yield api


@pytest.fixture(scope="module")
def described(served: Front) -> Any:
    return schemathesis.openapi.from_url(f"{served.url}/openapi.json")


DESCRIPTION = schemathesis.pytest.from_fixture("described")


@DESCRIPTION.parametrize()
@settings(
    max_examples=8,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_request_is_answered_with_a_server_error(served: Front, case: schemathesis.Case[Any]) -> None:
    Heartbeat(served.fleet.database, served.fleet.clock).beat()  # else /readyz says 503, and truly
    answer = case.call(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=20)
    assert answer.status_code < 500, (case.method, case.path, answer.text)
    if answer.status_code >= 400:
        assert "application/problem+json" in str(answer.headers["content-type"])
