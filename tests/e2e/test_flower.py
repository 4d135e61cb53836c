"""The real Flower of `livesnap standalone --flower`: by its API, and as a person sees it in a browser."""

import json
import os
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from tests.bed.need import browser
from tests.bed.process import CLEAN_ENV
from tests.e2e.kit import Livesnap, place
from tests.wait import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.e2e,
    pytest.mark.own_backends,
    pytest.mark.needs("guest", "redis-server", "browser"),
]

PNG = b"\x89PNG\r\n\x1a\n"


class Pages:
    """Flower as somebody who knows, or does not know, its password reaches it."""

    def __init__(self, livesnap: Livesnap) -> None:
        self.url, self.password = (
            (livesnap.state_dir / name).read_text().strip() for name in ("flower-url", "flower-password")
        )

    def ask(self, path: str, *, method: str = "GET", password: str | None = None) -> tuple[int, str]:
        """Return status and text; 0 while nobody listens."""
        login = b64encode(f"livesnap:{self.password if password is None else password}".encode()).decode()
        headers = {"Authorization": f"Basic {login}"} if password != "" else {}
        request = urllib.request.Request(f"{self.url}{path}", headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")
        except OSError:
            return 0, ""

    def tasks(self) -> list[dict[str, Any]]:
        """Return the tasks that it knows."""
        status, text = self.ask("/api/tasks?limit=1000")
        return list(json.loads(text).values()) if status == 200 else []

    def browse(self, path: str, folder: Path, *words: str) -> str:
        """Open a page in a headless browser and let its scripts run; return the document as it then is."""
        program = browser()
        assert program is not None
        where = self.url.replace("://", f"://livesnap:{self.password}@") + path
        quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1440,560"]
        own = [f"--user-data-dir={folder}/profile", "--virtual-time-budget=10000"]
        argv = [program, *quiet, *own, *words, where]
        environment = {**CLEAN_ENV, "HOME": str(folder)}
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout


def test_flower_shows_a_snapshot(tmp_path: Path) -> None:
    with place() as here, here.livesnap("--flower") as livesnap:
        guest = here.guest("web1")
        livesnap.shows(guest)
        pages = Pages(livesnap)
        eventually(lambda: pages.ask("/api/tasks")[0] == 200, timeout_s=30, what="Flower", interval_s=0.2)
        job = livesnap.json("snapshot", "create", "web1", "--name", "shown")
        assert job["state"] == "completed"

        def finished() -> list[dict[str, Any]]:
            found = [task for task in pages.tasks() if job["id"] in task["args"]]
            return found if len(found) >= 4 and all(task.get("succeeded") for task in found) else []

        tasks = eventually(finished, timeout_s=20, what="the job's tasks in Flower", interval_s=0.2)
        assert_tasks(tasks, job)
        assert_closed(pages)
        assert_no_secrets(livesnap, pages)
        assert_pages(pages, job, tmp_path)


def assert_tasks(tasks: list[dict[str, Any]], job: Any) -> None:
    """Each command and answer of the job: what, about which machine and attempt, by whom and for whom, and when."""
    by_name = {task["name"]: task for task in tasks}
    attempts = {each["to"]: each["attempt"] for each in job["attempts"]}
    for name, node, queue in (("spm.create", "spm@h1", "spm.default"), ("host.pivot", "host@h1", "host.h1")):
        task = by_name[name]
        assert task["args"].startswith(f"{name} vm=web1 attempt={attempts[queue]} job={job['id']} step="), task
        assert (task["worker"], task["routing_key"], task["kwargs"]) == (node, queue, "{}")
        assert task["sent"]  # noted by its sender, perhaps after the worker had it
        assert task["received"] <= task["started"] <= task["succeeded"], task
        assert task["runtime"] > 0
    answers = [task for task in tasks if task["name"] == "manager.answer"]
    assert {task["worker"] for task in answers} == {"manager@h1"}
    assert {task["routing_key"] for task in answers} == {"manager.answers"}


def assert_closed(pages: Pages) -> None:
    """Nothing is seen without the password, nothing is done with it; but two pages want none, whatever is set."""
    for path in ("/", "/tasks", "/workers", "/api/tasks", "/api/workers"):
        assert pages.ask(path, password="")[0] == 401, path
        assert pages.ask(path, password="wrong")[0] == 401, path
    acts = ("/api/worker/shutdown/host@h1", "/api/worker/pool/grow/host@h1?n=1", "/api/task/send-task/host.pivot")
    assert {path: pages.ask(path, method="POST")[0] for path in acts} == dict.fromkeys(acts, 403)
    for path in ("/metrics", "/healthcheck"):
        assert pages.ask(path, password="")[0] == 200, "a newer Flower asks here too: say so in deploy/README.md"
    assert pages.url.startswith("http://127.0.0.1:")


def assert_no_secrets(livesnap: Livesnap, pages: Pages) -> None:
    token = (livesnap.state_dir / "token").read_text().strip()
    seen = json.dumps(pages.tasks()) + pages.ask("/metrics", password="")[1] + livesnap.log("flower")
    assert not [secret for secret in (token, pages.password, "PRIVATE", "qcow2", "<domain") if secret in seen]
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [words for words in commands if pages.password.encode() in words]
    assert {oct(path.stat().st_mode & 0o777) for path in livesnap.state_dir.glob("flower-*")} == {"0o600"}


def assert_pages(pages: Pages, job: Any, folder: Path) -> None:
    """What a person sees: this job, its machine and host, on the page of tasks and on that of workers."""
    shown = pages.browse("/tasks", folder, "--dump-dom")
    rows = re.findall(r"<tr[^>]*>.*?</tr>", shown, re.DOTALL)
    (pivot,) = [row for row in rows if "host.pivot" in row and job["id"] in row]
    for word in ("vm=web1", "attempt=", "host@h1", "host.h1", "SUCCESS"):
        assert word in pivot, (word, pivot)
    workers = pages.browse("/workers", folder, "--dump-dom")
    assert not [name for name in ("manager@h1", "spm@h1", "host@h1") if name not in workers]
    picture = folder / "tasks.png"
    pages.browse("/tasks", folder, f"--screenshot={picture}")
    assert picture.read_bytes().startswith(PNG)
    assert picture.stat().st_size > 20_000, "an empty page is smaller"
    if kept := os.environ.get("LIVESNAP_FLOWER_PICTURE"):
        shutil.copy(picture, kept)  # how docs/flower.png was made
