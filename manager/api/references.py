"""Names and ids in paths and headers, refused before they reach the database if nothing can have them."""

from typing import Annotated

from fastapi import Header, Path

from common.errors import RequestRefused

MAX_LENGTH = 600
"""Longer than VM/NAME can be."""


def checked(reference: str) -> str:
    """Return an id or name; raise RequestRefused(request_malformed) for one that no database could even look up."""
    if len(reference) > MAX_LENGTH or any(ord(char) < 32 or 0xD800 <= ord(char) <= 0xDFFF for char in reference):
        raise RequestRefused("request_malformed", f"not an id or name: {reference[:80]!a}")
    return reference


def checked_key(key: str | None) -> str | None:
    """Return an idempotency key; raise RequestRefused(request_malformed) unless it is 1 to 255 printable characters."""
    if key is not None and not (1 <= len(key) <= 255 and key.isascii() and key.isprintable()):
        raise RequestRefused("request_malformed", "Idempotency-Key: not 1 to 255 printable ASCII characters")
    return key


Reference = Annotated[str, Path(description="An id, or a name where it is unique.")]
IdempotencyKey = Annotated[str | None, Header(description="Makes repeating safe: one key, one job.")]
