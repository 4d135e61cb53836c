"""Real messages once more: shuffled, repeated, beside a running job, after its end, after restarts, hours later.

What is sent again was heard on the wire, from whoever published it, in every test of this group so far. Nothing may
come of it: no job, snapshot, volume or definition changes, no guest is frozen, and no process dies.
"""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from typing import Any

import pytest

from hostagent.places import journal_file
from tests.brokers import always_on
from tests.e2e.scene import AGENT, MANAGER, SPM, Scene
from tests.e2e.wires import WIRES, Heard, Wired

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.own_backends,
    pytest.mark.timeout(300),
    pytest.mark.needs("guest", "redis-server"),
]

COMMANDS = ("spm.create", "spm.delete", "host.pivot", "host.probe", "host.repair")


def everything(scene: Scene) -> dict[str, Any]:
    """Return all that a message could change: jobs, snapshots, machine, volumes with metadata, journal, processes."""
    files = sorted(scene.here.storage.glob("images/*/*")) + sorted(scene.here.storage.glob("trash/*/*"))
    where = f"file:{journal_file(scene.livesnap.state_dir / 'host')}?mode=ro"
    with closing(sqlite3.connect(where, uri=True)) as journal:
        attempts = journal.execute("select vm, attempt, job, step, answer from attempt").fetchall()
        frozen = journal.execute("select * from frozen").fetchall()
    return {
        "jobs": scene.livesnap.ask("/v1/jobs"),
        "snapshots": scene.livesnap.snapshots(scene.vm),
        "live": scene.vm.sources(),
        "persistent": scene.vm.sources(persistent=True),
        "files": [str(file) for file in files],
        "metadata": {str(file): file.read_text() for file in files if file.suffix == ".json"},
        "attempts": attempts,
        "frozen": frozen,
        "processes": [scene.livesnap.pid_of(name) for name in (AGENT, SPM, MANAGER)],
    }


def one_snapshot(wired: Wired) -> Any:
    """Take one snapshot to its end, and check that nothing is left."""
    job = wired.scene.livesnap.submit(wired.scene.vm)
    ended = wired.scene.ends_well(job)
    assert ended["state"] == "completed", ended
    return ended


def shuffled(messages: list[Heard], times: int) -> list[Heard]:
    """Return every message so many times, in an order that nobody has sent them in."""
    mixed = messages * times
    random.Random(len(messages)).shuffle(mixed)
    return mixed


@always_on("redis", "wired", WIRES)
def test_replayed_messages_change_nothing(wired: Wired) -> None:
    """Everything that was ever said, three times, after a restart of who had heard it, beside a new job and after."""
    scene, wire = wired.scene, wired.wire
    one_snapshot(wired)
    for process in (AGENT, SPM, MANAGER):
        os.kill(scene.livesnap.pid_of(process), signal.SIGKILL)
    for process in (AGENT, SPM, MANAGER):
        scene.is_back(process)
    scene.check_nothing_is_left(one_snapshot(wired))
    before, old = everything(scene), list(wire.heard)
    assert Counter(heard.task for heard in old).keys() >= {"spm.create", "host.pivot", "manager.answer"}

    with scene.held(AGENT):
        job = scene.livesnap.submit(scene.vm)
        scene.reaches(job, "pivoting")
        wire.send_again(shuffled(old, 2))
    ended = scene.ends_well(job)
    assert ended["state"] == "completed"
    wire.send_again(shuffled(old, 1))
    # The next job's messages stand behind them in every queue: once it is over, they have all been taken.
    last = one_snapshot(wired)

    after = everything(scene)
    new = {ended["id"], last["id"]}
    assert [job for job in after["jobs"] if job["id"] not in new] == before["jobs"]
    taken = {ended["snapshot_id"], last["snapshot_id"]}
    assert [each for each in after["snapshots"] if each["id"] not in taken] == before["snapshots"]
    assert set(after["files"]) >= set(before["files"])
    assert {name: after["metadata"][name] for name in before["metadata"]} == before["metadata"]
    assert (after["frozen"], after["processes"]) == ([], before["processes"])


@always_on("redis", "wired", WIRES)
@pytest.mark.parametrize("hours", [0, 5])
def test_what_the_host_was_told_once_is_not_done_twice(wired: Wired, hours: int) -> None:
    """Every command that the host was ever sent, newest first, taken by one more agent of it, now and hours later.

    Now, what it has answered already is answered from its journal, word for word, and what is older is refused; later
    all that had a deadline is refused for that.
    """
    scene = wired.scene
    one_snapshot(wired)
    commands = [heard for heard in wired.wire.heard if heard.queue == "host.h1" and heard.task in COMMANDS]
    assert commands
    before = everything(scene)
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.hours_later", str(hours)],
        input=json.dumps([heard.sealed for heard in reversed(commands)]),
        env={**os.environ, "LIVESNAP_CONFIG": str(scene.livesnap.state_dir / "settings" / "host.toml")},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    answers = [json.loads(text)["body"] for _, text in json.loads(done.stdout.splitlines()[-1])]
    assert len(answers) == len(commands), "each of them is answered"
    told = Counter((answer["op"], answer.get("why", "")) for answer in answers)
    assert told.keys() <= {("refused", "expired"), ("refused", "stale"), ("host.observed", "")}, told
    pivots = sum(heard.task == "host.pivot" for heard in commands)
    assert told["refused", "expired"] >= (pivots if hours else 0)
    assert told["host.observed", ""] >= (0 if hours else 1)
    assert everything(scene) == before
