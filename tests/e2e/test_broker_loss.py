"""The broker dies, comes back empty, or stays away, in each step of the saga: every job still ends well.

A step is held by stopping the process whose turn it is, so that its command or its answer is on the way. Then this
process dies, with what it may have taken already, and all that the broker has is lost; Redis is killed as well. Only
the outbox knows what is still wanted, and only the host's journal and the storage what was done.
"""

import os
import signal
import time
from contextlib import ExitStack
from typing import Any

import pytest

from tests.brokers import always_on
from tests.e2e.scene import AGENT, MANAGER, SPM
from tests.e2e.wires import WIRES, RedisWire, Wired
from tests.wait import eventually

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.own_backends,
    pytest.mark.timeout(300),
    pytest.mark.needs("guest", "redis-server"),
]

ABSENCE_S = float(os.environ.get("LIVESNAP_TEST_ABSENCE_S", "12"))
"""Longer than the timeout of any connection. A minute is tried by hand: it only takes longer."""


def lose_everything(wired: Wired, taker: str) -> None:
    """Kill the process that may have taken messages, lose every message, and where that takes no time the broker."""
    with wired.scene.livesnap.nothing_restarted():
        os.kill(wired.scene.livesnap.pid_of(taker), signal.SIGKILL)
        wired.wire.lose_all()
        if isinstance(wired.wire, RedisWire):
            wired.wire.kill()
    if isinstance(wired.wire, RedisWire):
        wired.wire.revive()


def asked_again(job: Any) -> bool:
    """Tell whether the outbox has sent one of a job's commands more than once: something was really lost."""
    return any(attempt["deliveries"] > 1 for attempt in job["attempts"])


def test_lost_while_volumes_are_made(wired: Wired) -> None:
    scene = wired.scene
    with scene.held(SPM):
        job = scene.livesnap.submit(scene.vm)
        scene.reaches(job, "creating_volumes")
        lose_everything(wired, SPM)
    ended = scene.ends_well(job)
    assert (ended["state"], asked_again(ended)) == ("completed", True)


@always_on("redis", "wired", WIRES)
def test_lost_before_the_host_has_begun(wired: Wired) -> None:
    scene = wired.scene
    with scene.held(AGENT):
        job = scene.livesnap.submit(scene.vm)
        scene.reaches(job, "pivoting")
        lose_everything(wired, AGENT)
    ended = scene.ends_well(job)
    assert (ended["state"], asked_again(ended)) == ("completed", True)


def test_an_answer_that_is_lost_is_given_again(wired: Wired) -> None:
    """The machine has been moved, and nobody has heard of it: asked again, the host says what it has written down."""
    scene, before = wired.scene, len(wired.wire.heard)
    with ExitStack() as manager_held:
        with scene.held(AGENT):
            job = scene.livesnap.submit(scene.vm)
            scene.reaches(job, "pivoting")
            wired.wire.hears("host.pivot", after=before)
            manager_held.enter_context(scene.held(MANAGER))
            before = len(wired.wire.heard)
        wired.wire.hears("manager.answer", after=before)
        lose_everything(wired, MANAGER)
    ended = scene.ends_well(job)
    assert (ended["state"], asked_again(ended)) == ("completed", True)
    (snapshot,) = [each for each in scene.livesnap.snapshots(scene.vm) if each["id"] == ended["snapshot_id"]]
    assert snapshot["consistency"] == "filesystem", "the receipt came with the second answer"


@always_on("redis", "wired", WIRES)
def test_lost_while_the_outcome_is_asked_for(wired: Wired) -> None:
    scene = wired.scene
    with scene.held(AGENT):
        job = scene.livesnap.submit(scene.vm)
        scene.reaches(job, "pivoting")
        scene.cancel(job)
        scene.reaches(job, "awaiting_host")
        lose_everything(wired, AGENT)
    assert asked_again(scene.ends_well(job))


@always_on("redis", "wired", WIRES)
def test_lost_while_it_is_rolled_back(wired: Wired) -> None:
    scene = wired.scene
    with scene.held(SPM):
        job = scene.livesnap.submit(scene.vm)
        scene.reaches(job, "creating_volumes")
        assert scene.cancel(job)["state"] == "deleting_volumes"
        lose_everything(wired, SPM)
    ended = scene.ends_well(job)
    assert (ended["state"], asked_again(ended)) == ("rolled_back", True)


def test_the_broker_is_away_for_long(wired: Wired) -> None:
    """The job says what it waits for, and goes on by itself."""
    scene = wired.scene
    with scene.held(SPM):
        job = scene.livesnap.submit(scene.vm)
        scene.reaches(job, "creating_volumes")
        with scene.livesnap.nothing_restarted():
            wired.wire.kill()
            back_at = time.monotonic() + ABSENCE_S
            scene.reaches(job, "creating_volumes", waiting_for="the message broker")
            eventually(lambda: time.monotonic() > back_at, timeout_s=ABSENCE_S + 1, what="the end of the absence")
            assert scene.livesnap.job(job["id"])["waiting_for"] == "the message broker"
    wired.wire.revive()
    assert scene.ends_well(job)["state"] == "completed"
