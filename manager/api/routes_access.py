"""Tokens and the audit log, for admins."""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query

from manager.api.dependencies import Asking, TheAccess
from manager.api.problems import RESPONSES
from manager.api.references import Reference, checked
from manager.api.schemas import TokenBody
from manager.roles import Role
from manager.views import AuditView, NewTokenView, TokenView

router = APIRouter(prefix="/v1", tags=["access"], responses=RESPONSES)


@router.post("/tokens", status_code=201)
def create_token(access: TheAccess, asking: Asking, body: TokenBody) -> NewTokenView:
    """Make a token and show it, this once."""
    ttl = None if body.ttl_s is None else timedelta(seconds=body.ttl_s)
    return access.create(body.name, Role(body.role), by=asking.name, ttl=ttl)


@router.get("/tokens")
def list_tokens(access: TheAccess) -> list[TokenView]:
    """List every token that was ever made, newest first."""
    return access.list_tokens()


@router.delete("/tokens/{token:path}")
def revoke_token(access: TheAccess, asking: Asking, token: Reference) -> TokenView:
    """End a token, by its name."""
    return access.revoke(checked(token), by=asking.name)


@router.get("/audit")
def list_audit(
    access: TheAccess, token: Annotated[str | None, Query(description="Only what this token asked for.")] = None
) -> list[AuditView]:
    """List who asked for what, newest first: whatever was to change something, and what was refused for its role."""
    return access.asked(None if token is None else checked(token))
