"""Who may do what: three roles, and the least one that each request takes. Pure.

viewer      looks
operator    works with machines: takes snapshots, locks, cancels, resolves, and has doctor look and repair
admin       everything, tokens and the audit log among it; also whatever is not named here
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Role(StrEnum):
    """A token's role; each may do what those before it may."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def covers(self, least: "Role") -> bool:
        """Tell whether this role may do what takes `least`."""
        ranks = list(Role)
        return ranks.index(self) >= ranks.index(least)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks: a token's name and role. Tokens of the token file have no names; they are `FILE`, and admins."""

    name: str
    role: Role


FILE: Final = "token file"
LOOKING: Final = frozenset({"GET", "HEAD"})
_SEEN_BY_VIEWERS: Final = frozenset({"hosts", "pools", "storage-domains", "vms", "snapshots", "jobs", "limits"})
_FOR_OPERATORS: Final = frozenset({"vms", "snapshots", "jobs", "doctor"})


def least_role(method: str, path: str) -> Role:
    """Return the least role for a request below `/v1`, by its method and decoded path.

    What is not named takes an admin: a new route is closed until somebody decides. Doctor asks every host, so even its
    look is not a viewer's.
    """
    area = path.removeprefix("/v1/").partition("/")[0]
    if method in LOOKING and area in _SEEN_BY_VIEWERS:
        return Role.VIEWER
    return Role.OPERATOR if area in _FOR_OPERATORS else Role.ADMIN
