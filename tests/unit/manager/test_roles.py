"""Roles: each covers those below it, and whatever nobody has named takes an admin."""

import pytest

from manager.roles import Role, least_role


def test_each_role_covers_itself_and_those_before_it() -> None:
    covered = {role: [least for least in Role if role.covers(least)] for role in Role}
    assert [len(covered[role]) for role in (Role.VIEWER, Role.OPERATOR, Role.ADMIN)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("method", "path", "least"),
    [
        ("GET", "/v1/vms/tokens", Role.VIEWER),
        ("HEAD", "/v1/jobs", Role.VIEWER),
        ("POST", "/v1/vms/web1/snapshots", Role.OPERATOR),
        ("GET", "/v1/doctor", Role.OPERATOR),
        ("GET", "/v1/storage-domains", Role.VIEWER),
        ("PUT", "/v1/hosts", Role.ADMIN),
        ("POST", "/v1/hosts", Role.ADMIN),
        ("DELETE", "/v1/hosts/h1", Role.ADMIN),
        ("POST", "/v1/pools", Role.ADMIN),
        ("GET", "/v1/dead-letters", Role.ADMIN),
        ("GET", "/v1/tokens", Role.ADMIN),
        ("GET", "/v1", Role.ADMIN),
        ("GET", "/v1//jobs", Role.ADMIN),
        ("GET", "/v1x/jobs", Role.ADMIN),
        ("GET", "/v1/nobody-has-named-this", Role.ADMIN),
    ],
)
def test_the_least_role_of_a_request(method: str, path: str, least: Role) -> None:
    assert least_role(method, path) is least
