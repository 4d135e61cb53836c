"""What every test may rely on: a missing tool is a skip with its reason on a laptop, and a failure in CI."""

import os
import signal
import sys

import pytest
import structlog

from tests.bed.need import need

# Many a container forbids compiled modules. The suite starts hundreds of processes; each would compile all of livesnap.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell ignores Ctrl-C for what it starts in the background, and so would each process that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure() -> None:
    """Log plainly, as the product does: structlog's own way shows a traceback in colours, with every local value, and
    takes a third of a second for each."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["at", "level", "event"], drop_missing=True),
        ]
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Hold back a test marked `needs("libvirtd", …)` when one of these tools is not there."""
    wanted = [tool for mark in item.iter_markers("needs") for tool in mark.args]
    reason = need(*wanted) if wanted else None
    if reason and os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    if reason:
        pytest.skip(reason)
