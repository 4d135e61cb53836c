"""A bound on how much of a request is read, with the same kind of answer as every other refusal."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from manager.api.problems import problem

MAX_BODY_BYTES = 256 * 1024
"""Far above what a request with 256 disks and the longest description needs."""


class LimitBody:
    """Refuses bodies that are too large, by what they announce or by what they turn out to be."""

    def __init__(self, app: ASGIApp) -> None:
        """Stand before `app`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its body read and counted, or answer 422."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        too_large = announced.isdecimal() and int(announced) > MAX_BODY_BYTES
        messages = None if too_large else await _read(receive)
        if messages is None:
            await problem("request_malformed", f"the body has more than {MAX_BODY_BYTES} bytes")(scope, receive, send)
            return
        rest = iter(messages)

        async def replay() -> Message:
            return next(rest, None) or await receive()

        await self._app(scope, replay, send)


async def _read(receive: Receive) -> list[Message] | None:
    """Return the messages of the whole body; None once they are too large."""
    messages: list[Message] = []
    size = 0
    while True:
        message = await receive()
        messages.append(message)
        size += len(message.get("body", b""))
        if size > MAX_BODY_BYTES:
            return None
        if message["type"] != "http.request" or not message.get("more_body"):
            return messages
