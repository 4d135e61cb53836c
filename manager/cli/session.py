"""Which server a command speaks to, and how things are named in its paths.

The global options say so, or the environment, or a standalone instance's state directory.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from manager.cli.failures import CommandFailed

DEFAULT_URL = "http://127.0.0.1:8470"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where the API listens and the token that it wants ('': none)."""

    url: str
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The global options as given; what is missing comes from the environment when a command needs the server."""

    url: str | None = None
    token: str | None = None
    state_dir: Path | None = None

    def logs(self) -> Path:
        """Return where a standalone instance has its logs. Raises CommandFailed if no state directory was named."""
        named = self.state_dir or (Path(state) if (state := os.environ.get("LIVESNAP_STATE_DIR")) else None)
        if named is None:
            hint = "Name a standalone instance by --state-dir, or files with --from; `-` reads standard input."
            raise CommandFailed("request_malformed", "it is not said where the logs are", hint)
        return named / "logs"

    def server(self) -> Server:
        """Return the server to speak to.

        An option wins over the state directory, and that over LIVESNAP_URL and LIVESNAP_TOKEN: what is nearer to the
        command is meant. A state directory that was only set by LIVESNAP_STATE_DIR comes last.
        """
        environment = os.environ
        named = self.state_dir
        fallback = Path(environment["LIVESNAP_STATE_DIR"]) if environment.get("LIVESNAP_STATE_DIR") else None
        url = self.url or _line(named, "url") or environment.get("LIVESNAP_URL") or _line(fallback, "url")
        token = self.token or _line(named, "token") or environment.get("LIVESNAP_TOKEN") or _line(fallback, "token")
        return Server(url=_checked(url or DEFAULT_URL), token=_printable(token or ""))


def segment(reference: str) -> str:
    """Return an id or name as one part of a path. Raises CommandFailed for one that cannot be asked for."""
    if not reference or any(ord(char) < 32 for char in reference):
        hint = "Name a machine, snapshot or job; one with control characters in its name has an id too."
        raise CommandFailed("request_malformed", f"not an id or name: {reference!a}", hint)
    try:
        return quote(reference, safe="")
    except UnicodeEncodeError as error:
        raise CommandFailed("request_malformed", f"not valid UTF-8: {reference!a}") from error


def _line(state_dir: Path | None, name: str) -> str | None:
    """Return what a standalone instance wrote into `name`. Raises CommandFailed if it cannot be read."""
    if state_dir is None:
        return None
    try:
        return (state_dir / name).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        message = f"reading {name} of the standalone instance in {state_dir}: {error}"
        raise CommandFailed("server_unreachable", message, "Start `livesnap standalone` there first.") from error


def _checked(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise CommandFailed("request_malformed", f"not an http:// or https:// address: {url!r}", "Correct --url.")
    return url.rstrip("/")


def _printable(token: str) -> str:
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise CommandFailed("token_wrong", "the token holds blanks or characters that no token has")
    return token
