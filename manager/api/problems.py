"""Errors as `application/problem+json` (RFC 9457) with the stable code of common/error_codes.py."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from common.error_codes import CATALOGUE
from common.errors import LivesnapError
from manager.api.schemas import Problem

MEDIA_TYPE = "application/problem+json"
RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Problem, "content": {MEDIA_TYPE: {}}, "description": "Refused: nothing was created or changed."},
    "5XX": {"model": Problem, "content": {MEDIA_TYPE: {}}, "description": "Cannot be answered now; ask again."},
}
"""What every route says about its errors in the OpenAPI description."""


def problem(code: str, detail: str, hint: str = "") -> JSONResponse:
    """Return the answer for one error; status and default hint are the code's own."""
    entry = CATALOGUE[code]
    body = Problem(
        type=f"urn:livesnap:error:{code}",
        title=entry.cause,
        status=entry.status,
        detail=detail,
        code=code,
        hint=hint or entry.cure,
    )
    headers = {"WWW-Authenticate": "Bearer"} if entry.status == 401 else None
    return JSONResponse(body.model_dump(), status_code=entry.status, media_type=MEDIA_TYPE, headers=headers)


def problem_of(error: LivesnapError) -> JSONResponse:
    """Return the answer for an error of ours."""
    return problem(error.code, error.message, error.hint)


def install(app: FastAPI) -> None:
    """Let every error of `app` leave it as a problem."""
    app.add_exception_handler(LivesnapError, _ours)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _fault)


def _ours(_: Request, error: Exception) -> Response:
    assert isinstance(error, LivesnapError)
    return problem_of(error)


def _malformed(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return problem("request_malformed", "; ".join(_complaints(error.errors())))


def _complaints(errors: Sequence[Any]) -> list[str]:
    """Return one sentence for each wrong field. The value stays out: it may be huge, or not even be text."""
    shown = [f"{_field(error['loc'])}: {error['msg']}" for error in errors[:10]]
    return [*shown, f"and {len(errors) - 10} more"] if len(errors) > 10 else shown


def _field(location: Sequence[Any]) -> str:
    # The first part only says where it stood; for broken JSON the second is the offset.
    parts = [str(part)[:80] for part in location[1:]] or [str(part) for part in location]
    return ascii(".".join(parts))[1:-1]


def _http(request: Request, error: Exception) -> Response:
    """Answer what the framework itself refuses: a wrong path or method, a body that it cannot read."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {ascii(request.url.path)[1:-1][:200]}"
    if error.status_code in (404, 405):
        return problem("not_found", f"there is no {where}")
    return problem("request_malformed", f"{where}: {error.detail}")


def _fault(request: Request, error: Exception) -> Response:
    where = f"{request.method} {ascii(request.url.path)[1:-1][:200]}"
    return problem("internal_error", f"{where}: {type(error).__name__}")
