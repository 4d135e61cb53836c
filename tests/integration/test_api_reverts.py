"""Going back over HTTP: where the job is, what a dry run says, and that bad input gets an answer and nothing else."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.error_codes import CATALOGUE
from common.messaging.reports import VmState
from tests.integration.front_kit import Front, front
from tests.integration.manager_kit import counted, vm
from tests.integration.revert_kit import Story

PREVIEW, REVERT = "/v1/snapshots/web1/old/preview", "/v1/snapshots/web1%2Fold/revert"
UNDO, COMMIT = "/v1/vms/web1/undo", "/v1/vms/web1/commit"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Front]:
    """An API whose host h1 has web1."""
    with front(tmp_path) as served:
        served.fleet.report_spm()
        served.fleet.report_host(vm())
        yield served


@pytest.fixture
def story(api: Front) -> Story:
    return Story(api.fleet)


def test_each_is_accepted_with_the_address_of_its_job(api: Front, story: Story) -> None:
    for path, kind in (
        (PREVIEW, "preview"),
        (UNDO, "undo"),
        (PREVIEW, "preview"),
        (COMMIT, "commit"),
        (REVERT, "revert"),
    ):
        answer = api.ask("POST", path, {})
        assert (answer.status, answer.json["kind"]) == (202, kind)
        assert answer.headers["location"] == f"/v1/jobs/{answer.json['id']}"
        assert story.finish(story.fleet.service.show_job(answer.json["id"])).state == "completed"


def test_one_key_is_one_job(api: Front, story: Story) -> None:
    first = api.ask("POST", PREVIEW, {}, Idempotency_Key="k1")
    assert api.ask("POST", PREVIEW, {}, Idempotency_Key="k1").json["id"] == first.json["id"]
    other = api.ask("POST", PREVIEW, {"disks": ["vda"]}, Idempotency_Key="k1")
    assert (other.status, other.json["code"]) == (409, "idempotency_key_reused")


def test_a_dry_run_creates_nothing(api: Front, story: Story) -> None:
    before = counted(api.fleet)
    answer = api.ask("POST", REVERT, {"dry_run": True})
    assert (answer.status, answer.json["snapshot_name"], answer.json["targets"]) == (200, "old", ["vda"])
    assert [each["path"] for each in answer.json["volumes"]] == [story.leaf]
    assert counted(api.fleet) == before
    story.report(VmState.RUNNING)
    assert api.ask("POST", REVERT, {"dry_run": True}).json["code"] == "vm_running"


BAD: dict[str, tuple[str, Any, str]] = {
    "no JSON": (PREVIEW, b"{", "request_malformed"),
    "a field too many": (UNDO, {"yes": True}, "request_malformed"),
    "disks that are no list": (PREVIEW, {"disks": "vda"}, "request_malformed"),
    "a target that is none": (PREVIEW, {"disks": ["x" * 17]}, "request_malformed"),
    "a disk of another machine": (PREVIEW, {"disks": ["vdq"]}, "disk_unknown"),
    "no such snapshot": ("/v1/snapshots/web1/none/revert", {}, "snapshot_not_found"),
    "an id of nothing": ("/v1/snapshots/00000000-0000-0000-0000-000000000000/preview", {}, "snapshot_not_found"),
    "no such machine": ("/v1/vms/nobody/undo", {}, "vm_not_found"),
    "a name no database could hold": ("/v1/vms/we%00b/undo", {}, "request_malformed"),
    "not previewed": (COMMIT, {}, "vm_not_previewed"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_gets_an_answer_and_changes_nothing(api: Front, story: Story, what: str) -> None:
    path, body, code = BAD[what]
    before = counted(api.fleet)
    answer = api.ask("POST", path, body)
    assert (answer.status, answer.json["code"]) == (CATALOGUE[code].status, code)
    assert answer.json["hint"]
    assert counted(api.fleet) == before


def test_without_a_token_nothing(api: Front, story: Story) -> None:
    before = counted(api.fleet)
    assert api.ask("POST", REVERT, {}, token=None).status == 401
    assert counted(api.fleet) == before


def test_the_command_line_asks_before_it_gives_anything_up(api: Front, story: Story) -> None:
    before = counted(api.fleet)
    said = api.livesnap("snapshot", "revert", "web1/old", "--json")
    assert (said.status, json.loads(said.out)["error"]["code"]) == (2, "confirmation_needed")
    assert "gives up all that was written to vda of web1 since" in said.json["error"]["message"]
    assert "--yes" in said.json["error"]["hint"]
    assert counted(api.fleet) == before
    said = api.livesnap("snapshot", "revert", "web1/old", "--yes", "--no-wait", "--json")
    assert (said.status, said.json["kind"]) == (0, "revert")
    said = api.livesnap("snapshot", "undo", "web1", "--json")
    assert (said.status, said.json["error"]["code"]) == (2, "vm_busy")
    assert api.livesnap("snapshot", "preview", "web1/old", "--timeout", "-1").status == 2
