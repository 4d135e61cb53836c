"""Event streams as they are read, and what a job's state means for the exit status."""

import pytest

from manager.cli.client import Event, parsed_events
from manager.cli.failures import Status, status_of

STREAM = """\
: a sign of life

id: 3
event: step
data: {"step": "pivoting"}

event: waiting
data: {"waiting_for": "host h1"}

retry: 5
event: job
data: {"id": "x"}

id: 4
event: step
data: {"step": "cut off"}"""


def test_events_are_read_and_a_cut_off_one_is_left_out() -> None:
    assert list(parsed_events(STREAM.split("\n"))) == [
        Event(kind="step", id=3, data={"step": "pivoting"}),
        Event(kind="waiting", id=None, data={"waiting_for": "host h1"}),
        Event(kind="job", id=None, data={"id": "x"}),
    ]


@pytest.mark.parametrize(
    ("state", "finished_at", "status"),
    [
        ("completed", "2026-11-23T06:40:29Z", Status.DONE),
        ("rolled_back", "2026-11-23T06:40:29Z", Status.FAILED),
        ("needs_operator", None, Status.FAILED),
        ("pivoting", None, Status.RUNNING),
        ("awaiting_host", None, Status.RUNNING),
        ("a_state_of_a_newer_server", "2026-11-23T06:40:29Z", Status.FAILED),
    ],
)
def test_the_exit_status_follows_the_state(state: str, finished_at: str | None, status: Status) -> None:
    assert status_of({"state": state, "finished_at": finished_at}) is status
