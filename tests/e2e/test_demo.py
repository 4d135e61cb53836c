"""`make demo`'s story comes true, says so, and leaves nothing behind, also when somebody stops it half-way."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.bed.paths import short_dir
from tests.bed.small_fs import SmallFs
from tests.demo import leftovers
from tests.demo.teller import Teller
from tests.wait import eventually

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, "-m", "tests.demo"]

CREATION = "$ livesnap snapshot create web1"
CLAIMS = {
    "(a)": [
        "the job is completed, exit status 0",
        "hence labelled filesystem-consistent",
        "the chain was 1 volume long and is 2",
        "dumpe2fs shows no needs_recovery",
        "the guest has seen no write error",
        "the previous volume stands still while the guest writes on",
    ],
    "(b)": [
        "attempted with quiescing (no agent, nothing happened), then without (switched)",
        "it is labelled crash-consistent, because not quiesced",
        "dumpe2fs shows needs_recovery",
    ],
    "(c)": ["refused: exit status 2, code disk_shareable", "nothing was created"],
    "(d)": [
        "the job is rolled back, exit status 1, code volume_not_writable",
        "the new volume is gone, and no snapshot is listed",
        "not one acknowledged write is lost",
    ],
    "The end": ["no process, no mount and no folder of this demo is left"],
}

pytestmark = pytest.mark.own_backends
needs_guests = pytest.mark.needs("guest", "redis-server")


def chapters(story: str) -> dict[str, str]:
    """Return each chapter's text on one line, by the first words of its heading."""
    parts = re.split(r"^━━ (\([a-d]\)|The end|The stage).*$", story, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def folder_of(story: str) -> Path:
    """Return the folder below which everything of a run was."""
    found = re.search(r"everything below (/\S+)\. ", " ".join(story.split()))
    assert found, story
    return Path(found[1])


@contextmanager
def running(log: Path) -> Iterator[subprocess.Popen[Any]]:
    """Yield a demo whose output goes to a file; kill it if it is still there at the end."""
    with (
        log.open("wb") as out,
        subprocess.Popen(DEMO, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out) as demo,
    ):
        try:
            yield demo
        finally:
            demo.kill()


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(300)
@needs_guests
def test_the_story_comes_true(tmp_path: Path) -> None:
    log = tmp_path / "story"
    with running(log) as demo:
        demo.wait(280)
    story = log.read_text()
    assert demo.returncode == 0, story
    assert "BROKEN" not in story
    told = chapters(story)
    expected = dict(CLAIMS)
    if SmallFs.reason():
        assert "left out" in told["(d)"]
        del expected["(d)"]
    for name, claims in expected.items():
        for claim in claims:
            assert f" {claim}" in told[name], f"{name}: {claim}"
    assert leftovers.found(folder_of(story)) == []


@pytest.mark.matrix
@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(300)
@needs_guests
def test_stopped_half_way(tmp_path: Path) -> None:
    log = tmp_path / "story"
    with running(log) as demo:
        eventually(lambda: demo.poll() or CREATION in log.read_text(), timeout_s=200, what="chapter (a)")
        assert demo.poll() is None, log.read_text()
        demo.send_signal(signal.SIGINT)
        demo.send_signal(signal.SIGINT)
        demo.wait(90)
    story = log.read_text()
    assert demo.returncode == 130, story
    assert "holds no process, no mount and no folder" in chapters(story)["The end"], story
    assert leftovers.found(folder_of(story)) == []


def test_a_broken_claim_breaks_its_chapter_only(capsys: pytest.CaptureFixture[str]) -> None:
    teller = Teller()
    with teller.chapter("one"):
        teller.claim("water is wet", True)
    assert teller.all_true
    with teller.chapter("two"):
        teller.claim("water is dry", False, "rain")
    with teller.chapter("three"):
        teller.claim("water is wet", True)
    assert not teller.all_true
    assert [chapter.verdict for chapter in teller.chapters] == ["true", "broken", "true"]
    assert "BROKEN   water is dry; seen: 'rain'" in capsys.readouterr().out


def test_what_is_left_is_found_and_removed() -> None:
    with short_dir() as folder:
        beside = Path(f"{folder}x")
        words = [sys.executable, "-c", "input()"]
        with (
            subprocess.Popen([*words, str(folder / "socket")], stdin=subprocess.PIPE) as ours,
            subprocess.Popen([*words, str(beside)], stdin=subprocess.PIPE) as another,
        ):
            left = leftovers.found(folder)
            leftovers.remove(folder)
            assert another.poll() is None
            another.kill()
        assert [line.partition(":")[0] for line in left] == [f"process {ours.pid}", "folder"]
        assert ours.returncode == -signal.SIGKILL
        assert leftovers.found(folder) == []
