"""The command line, run in a copy of a process that has done its imports.

A run of `livesnap` takes 0.3 s of processor time, nearly all of it for starting Python and importing, and the tests
make hundreds. A process that has everything imported stands by here, and each run is a fork of it, with the words, the
environment, the folder and the outputs of whoever asks: the same code from `manager.cli.app.run` on, in 15 ms. That
the program itself starts is for tests/integration/test_cli.py, the demo and the benches.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import IO, Any

_LONGEST_REQUEST = 1 << 20


class WarmCommandLine:
    """Runs commands in forks of one process, which is started when it is first needed. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def run(self, words: Sequence[str], *, timeout_s: float) -> tuple[int, str, str]:
        """Return exit status, output and errors of `livesnap WORDS`. Raises TimeoutError; the command then goes on."""
        with (
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link,
        ):
            link.settimeout(timeout_s)
            link.connect(str(self._address()))
            request = json.dumps({"words": list(words), "environment": dict(os.environ), "folder": str(Path.cwd())})
            socket.send_fds(link, [request.encode()], [out.fileno(), err.fileno()])
            status = link.recv(16)
            assert status, f"the run of {words} died: {_text(err)}"
            return int(status), _text(out), _text(err)

    def _address(self) -> Path:
        with self._lock:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="ls-warm-")
                atexit.register(self.close)
            address = Path(self._folder.name) / "socket"
            if self._process is None:
                words = [sys.executable, "-m", "tests.e2e.warm", str(address)]
                pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
                self._process = subprocess.Popen(words, **pipes)  # type: ignore[call-overload]
                assert self._process.stdout is not None
                assert self._process.stdout.readline() == b"ready\n", "the command line does not start"
        return address

    def close(self) -> None:
        """End the process; it also ends when ours does."""
        with self._lock:
            if self._process is not None:
                self._process.communicate(timeout=10)
                self._process = None
            if self._folder is not None:
                self._folder.cleanup()
                self._folder = None


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


def main(address: str) -> None:
    """Serve until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for pytest, which then closes our input
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    _import_everything()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()
        os.write(1, b"ready\n")
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            with listener.accept()[0] as link:
                if os.fork() == 0:
                    listener.close()
                    _serve(link)


def _import_everything() -> None:
    import manager.cli
    from manager.cli.app import run

    for module in pkgutil.iter_modules(manager.cli.__path__, "manager.cli."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        run(["--url", "http://127.0.0.1:9", "--token", "none", "vm", "list"])  # what it imports on its way to a server
    gc.freeze()


def _serve(link: socket.socket) -> None:
    """Become the command line; never returns."""
    status = 70
    try:
        request, (out, err), _, _ = socket.recv_fds(link, _LONGEST_REQUEST, 2)
        asked: dict[str, Any] = json.loads(request)
        for signum in (signal.SIGINT, signal.SIGCHLD):
            signal.signal(signum, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (out, 1), (err, 2)):
            os.dup2(source, target)
        os.environ.clear()
        os.environ.update(asked["environment"])
        os.chdir(asked["folder"])
        random.seed()
        from manager.cli.app import run

        status = run(asked["words"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        link.send(str(status).encode())
        os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1])
