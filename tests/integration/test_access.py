"""Tokens with roles: every route for every role, a token's life, and the log of who asked for what."""

import hashlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from manager.access import Access
from manager.roles import Role
from manager.store.session import Database
from manager.store.tables import tokens
from tests.fakes.clock import FakeClock
from tests.integration.front_kit import TOKEN, Front, front
from tests.integration.manager_kit import disk, vm

pytest_plugins = ["tests.databases"]

LEAST = {
    ("GET", "/v1/hosts"): "viewer",
    ("POST", "/v1/hosts"): "admin",
    ("POST", "/v1/hosts/{host}/drain"): "admin",
    ("POST", "/v1/hosts/{host}/resume"): "admin",
    ("DELETE", "/v1/hosts/{host}"): "admin",
    ("GET", "/v1/pools"): "viewer",
    ("POST", "/v1/pools"): "admin",
    ("GET", "/v1/storage-domains"): "viewer",
    ("GET", "/v1/limits"): "viewer",
    ("POST", "/v1/limits"): "admin",
    ("GET", "/v1/dead-letters"): "admin",
    ("DELETE", "/v1/dead-letters"): "admin",
    ("POST", "/v1/hosts/{host}/remove"): "admin",
    ("GET", "/v1/vms"): "viewer",
    ("GET", "/v1/vms/{vm}"): "viewer",
    ("GET", "/v1/vms/{vm}/snapshots"): "viewer",
    ("POST", "/v1/vms/{vm}/snapshots"): "operator",
    ("POST", "/v1/vms/{vm}/lock"): "operator",
    ("DELETE", "/v1/vms/{vm}/lock"): "operator",
    ("GET", "/v1/snapshots/{snapshot}"): "viewer",
    ("POST", "/v1/snapshots/delete"): "operator",
    ("POST", "/v1/snapshots/{snapshot}/preview"): "operator",
    ("POST", "/v1/snapshots/{snapshot}/revert"): "operator",
    ("POST", "/v1/vms/{vm}/commit"): "operator",
    ("POST", "/v1/vms/{vm}/undo"): "operator",
    ("GET", "/v1/jobs"): "viewer",
    ("GET", "/v1/jobs/{job}"): "viewer",
    ("GET", "/v1/jobs/{job}/events"): "viewer",
    ("POST", "/v1/jobs/{job}/cancel"): "operator",
    ("POST", "/v1/jobs/{job}/resolve"): "operator",
    ("GET", "/v1/doctor"): "operator",
    ("POST", "/v1/doctor"): "operator",
    ("GET", "/v1/tokens"): "admin",
    ("POST", "/v1/tokens"): "admin",
    ("DELETE", "/v1/tokens/{token}"): "admin",
    ("GET", "/v1/audit"): "admin",
}
"""The least role of every route. A new one is missing here until somebody has decided."""


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Front]:
    with front(tmp_path) as served:
        served.fleet.report_spm()
        served.fleet.report_host(vm("web1", disk("web1.qcow2")))
        yield served


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Front, dict[str, str]]]:
    """An API without machines, and a token of each role."""
    with front(tmp_path_factory.mktemp("guarded")) as served:
        made = {role.value: served.access.create(role.value, role, by="test", ttl=None).token for role in Role}
        yield served, made


def routes(api: Front) -> dict[tuple[str, str], Any]:
    paths = api.ask("GET", "/openapi.json", token=None).json["paths"]
    return {
        (method.upper(), path): operation
        for path, methods in paths.items()
        for method, operation in methods.items()
        if path.startswith("/v1")
    }


def test_every_route_has_its_least_role(guarded: tuple[Front, dict[str, str]]) -> None:
    assert set(routes(guarded[0])) == set(LEAST)


@pytest.mark.parametrize("role", [*Role, None])
@pytest.mark.parametrize(("method", "path"), LEAST)
def test_each_role_may_do_what_it_may(
    guarded: tuple[Front, dict[str, str]], method: str, path: str, role: Role | None
) -> None:
    api, made = guarded
    asked = (
        path.replace("{vm}", "web1")
        .replace("{snapshot}", "web1/s")
        .replace("{job}", "0" * 36)
        .replace("{host}", "none")
    )
    answer = api.ask(method, asked.replace("{token}", "none"), {}, token=made[role] if role else None)
    if role is None:
        assert (answer.status, answer.json["code"]) == (401, "token_wrong")
    elif role.covers(Role(LEAST[method, path])):
        assert answer.status not in (401, 403, 500)
    else:
        assert (answer.status, answer.json["code"]) == (403, "role_insufficient")
        assert LEAST[method, path] in answer.json["detail"]


@pytest.mark.parametrize("path", ["/v1/%74okens", "/v1//jobs", "/v1/jobs/../tokens", "/v1/tokens/", "/v1", "/v1/new"])
def test_no_spelling_of_a_path_opens_what_is_closed(guarded: tuple[Front, dict[str, str]], path: str) -> None:
    api, made = guarded
    for method in ("GET", "POST", "PUT", "HEAD", "OPTIONS", "TRACE"):
        status = api.ask(method, path, token=made["viewer"]).status
        # A viewer may look for a job of the name `../tokens`; there is none.
        assert status in ((403, 404) if path.startswith("/v1/jobs") else (403,)), (method, path, status)


def test_a_token_is_kept_as_its_hash_and_ends_when_it_is_revoked(api: Front) -> None:
    made = api.ask("POST", "/v1/tokens", {"name": "ci", "role": "operator"})
    assert made.status == 201
    secret = made.json["token"]
    with api.fleet.database.read() as connection:
        row = connection.execute(select(tokens)).one()
    assert row.digest == hashlib.sha256(secret.encode()).hexdigest()
    assert secret not in str(row)
    assert api.ask("GET", "/v1/jobs", token=secret).status == 200
    (shown,) = api.ask("GET", "/v1/tokens").json
    assert (shown["name"], shown["role"], shown["created_by"], shown["revoked_at"]) == (
        "ci",
        "operator",
        "token file",
        None,
    )
    assert secret not in api.ask("GET", "/v1/tokens").content.decode()
    assert api.ask("DELETE", "/v1/tokens/ci").json["revoked_at"]
    assert api.ask("GET", "/v1/jobs", token=secret).json["code"] == "token_wrong"
    again = api.ask("POST", "/v1/tokens", {"name": "ci", "role": "viewer"})
    assert (again.status, again.json["code"]) == (409, "token_exists")
    assert api.ask("DELETE", "/v1/tokens/nobody").json["code"] == "token_not_found"
    assert api.ask("POST", "/v1/tokens", {"name": "x", "role": "root"}).json["code"] == "request_malformed"
    assert api.ask("POST", "/v1/tokens", {"name": "a\nb", "role": "viewer"}).json["code"] == "name_invalid"


def test_a_token_ends_by_itself(database: Database) -> None:
    clock = FakeClock()
    access = Access(database, clock)
    secret = access.create("short", Role.VIEWER, by="test", ttl=timedelta(minutes=1)).token
    clock.advance(59)
    found = access.caller(secret)
    assert found is not None
    assert (found.name, found.role) == ("short", Role.VIEWER)
    clock.advance(1)
    assert access.caller(secret) is None


def test_what_was_asked_for_is_written_down_with_who_asked(api: Front) -> None:
    operator = api.ask("POST", "/v1/tokens", {"name": "ci", "role": "operator"}).json["token"]
    job = api.ask("POST", "/v1/vms/web1/snapshots", {}, token=operator).headers["location"]
    api.ask("GET", "/v1/jobs", token=operator)
    api.ask("POST", "/v1/tokens", {"name": "mine", "role": "admin"}, token=operator)
    api.ask("GET", "/v1/jobs", token="nobody's")
    lines = [(each["token"], each["method"], each["path"], each["status"], each["location"]) for each in asked(api)]
    assert lines == [
        ("ci", "POST", "/v1/tokens", 403, ""),
        ("ci", "POST", "/v1/vms/web1/snapshots", 202, job),
        ("token file", "POST", "/v1/tokens", 201, ""),
    ]
    assert [each["token"] for each in api.ask("GET", "/v1/audit?token=ci").json] == ["ci", "ci"]
    assert operator not in api.ask("GET", "/v1/audit").content.decode()


def asked(api: Front) -> list[Any]:
    found: list[Any] = api.ask("GET", "/v1/audit").json
    return found


def test_nothing_is_done_that_cannot_be_written_down(api: Front) -> None:
    with api.fleet.database.write() as connection:
        connection.execute(text("ALTER TABLE audit RENAME TO away"))
    assert api.ask("POST", "/v1/vms/web1/snapshots", {}).status >= 500
    assert api.ask("GET", "/v1/jobs").json == []


def test_tokens_and_the_audit_log_on_the_command_line(api: Front) -> None:
    made = api.livesnap("token", "create", "ci", "--role", "viewer", "--ttl", "30d")
    assert made.status == 0
    secret = made.out.strip()
    assert api.ask("GET", "/v1/jobs", token=secret).status == 200
    assert api.livesnap("token", "create", "ci", "--role", "viewer").status == 2
    refused = api.livesnap("--token", secret, "vm", "lock", "web1", "--reason", "mine", "--json")
    assert (refused.status, refused.json["error"]["code"]) == (2, "role_insufficient")
    assert [each["name"] for each in api.livesnap("token", "list", "--json").json] == ["ci"]
    assert "/v1/vms/web1/lock" in api.livesnap("audit", "list", "--token", "ci").out
    assert api.livesnap("token", "revoke", "ci").status == 0
    assert api.livesnap("--token", secret, "job", "list").status == 2
    assert TOKEN not in api.livesnap("audit", "list").out
