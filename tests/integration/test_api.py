"""The HTTP API on a real port: its documents, and that bad input gets an answer and nothing else."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from common.error_codes import CATALOGUE
from common.ids import new_id
from common.messaging.messages import Outcome
from tests.integration.front_kit import TOKEN, Answered, Front, front
from tests.integration.manager_kit import created, disk, observed, vm
from tests.wait import eventually

CREATE = "/v1/vms/web1/snapshots"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Front]:
    """An API whose host h1 runs web1 (with one shareable disk) and db1."""
    with front(tmp_path) as served:
        report(served)
        yield served


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """The same for all tests in which nothing may change, which is checked at the end."""
    with front(tmp_path_factory.mktemp("calm")) as served:
        report(served)
        yield served
        assert served.ask("GET", "/v1/jobs").json == []
        assert served.fleet.sent == []


def report(served: Front) -> None:
    shared = disk("shared.qcow2", "vdb", shareable=True)
    served.fleet.report_spm()
    served.fleet.report_host(vm("web1", disk("web1.qcow2"), shared), vm("db1"))


def assert_problem(answer: Answered, code: str) -> None:
    """Check everything that every refusal has."""
    problem = answer.json
    assert (answer.status, problem["code"]) == (CATALOGUE[code].status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["status"] == answer.status
    assert problem["type"] == f"urn:livesnap:error:{code}"
    assert problem["title"]
    assert problem["detail"]
    assert problem["hint"]


def test_a_snapshot_is_accepted_with_the_address_of_its_job(api: Front) -> None:
    answer = api.ask("POST", CREATE, {"name": "one", "description": "before\nthe upgrade"})
    assert answer.status == 202
    job = answer.json
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["kind"], job["vm_name"], job["state"]) == ("snapshot", "web1", "creating_volumes")
    assert api.ask("GET", answer.headers["location"]).json["id"] == job["id"]
    assert [command.body.op for command in api.fleet.commands()] == ["spm.create"]


def test_a_finished_snapshot_is_shown_whole(api: Front) -> None:
    job = api.ask("POST", CREATE, {"name": "one", "description": "d"}).json
    api.fleet.complete(api.fleet.service.show_job(job["id"]))
    done = api.ask("GET", f"/v1/jobs/{job['id']}").json
    assert (done["state"], done["error"], done["waiting_for"]) == ("completed", None, "")
    assert [entry["step"] for entry in done["timeline"]] == ["creating_volumes", "pivoting", "completed"]
    (snapshot,) = api.ask("GET", CREATE).json
    assert snapshot == api.ask("GET", "/v1/snapshots/web1/one").json
    assert snapshot == api.ask("GET", f"/v1/snapshots/{done['snapshot_id']}").json
    assert (snapshot["name"], snapshot["description"], snapshot["consistency"]) == ("one", "d", "filesystem")
    assert snapshot["disks"][0].keys() == {"target", "volume_id", "storage_domain", "path", "size_bytes"}
    assert snapshot["excluded"] == [{"target": "vdb", "reason": "disk_shareable"}]
    assert snapshot["receipt"]["frozen_filesystems"] == 2
    for moment in (snapshot["taken_at"], done["created_at"], done["finished_at"]):
        assert moment.endswith("Z")
        assert datetime.fromisoformat(moment).tzinfo == UTC


def test_the_inventory_is_shown(calm: Front) -> None:
    (host,) = calm.ask("GET", "/v1/hosts").json
    assert (host["id"], host["state"], host["vm_count"], host["frozen"]) == ("h1", "up", 2, [])
    assert sorted(vm["name"] for vm in calm.ask("GET", "/v1/vms").json) == ["db1", "web1"]
    shown = calm.ask("GET", "/v1/vms/web1").json
    keys = ("target", "can_snapshot", "refusal", "refusal_message")
    assert [tuple(disk[key] for key in keys) for disk in shown["disks"]] == [
        ("vda", True, "", ""),
        ("vdb", False, "disk_shareable", "Shareable disks cannot be snapshotted."),
    ]
    assert shown == calm.ask("GET", f"/v1/vms/{shown['id']}").json


def test_one_idempotency_key_is_one_job(api: Front) -> None:
    body, key = {"name": "one"}, new_id()
    first = api.ask("POST", CREATE, body, Idempotency_Key=key)
    again = api.ask("POST", CREATE, body, Idempotency_Key=key)
    assert (first.status, again.status) == (202, 202)
    assert first.json["id"] == again.json["id"]
    assert_problem(api.ask("POST", CREATE, {"name": "two"}, Idempotency_Key=key), "idempotency_key_reused")
    assert len(api.ask("GET", "/v1/jobs").json) == 1


def test_a_dry_run_only_tells(calm: Front) -> None:
    answer = calm.ask("POST", CREATE, {"dry_run": True})
    assert answer.status == 200
    assert {line["level"] for line in answer.json} <= {"ok", "warning"}
    refused = calm.ask("POST", CREATE, {"dry_run": True, "disks": ["vdb"]}).json
    assert "disk_shareable" in {line["code"] for line in refused if line["level"] == "refusal"}


def test_jobs_are_listed_newest_first_and_filtered(api: Front) -> None:
    first = api.ask("POST", CREATE, {}).json["id"]
    api.fleet.complete(api.fleet.service.show_job(first))
    second = api.ask("POST", "/v1/vms/db1/snapshots", {}).json["id"]
    assert [job["id"] for job in api.ask("GET", "/v1/jobs").json] == [second, first]
    assert [job["id"] for job in api.ask("GET", "/v1/jobs?vm=web1").json] == [first]
    assert [job["id"] for job in api.ask("GET", "/v1/jobs?active=true").json] == [second]
    assert_problem(api.ask("GET", "/v1/jobs?active=perhaps"), "request_malformed")


def test_a_job_is_cancelled_only_before_its_end(api: Front) -> None:
    job = api.ask("POST", CREATE, {}).json["id"]
    answer = api.ask("POST", f"/v1/jobs/{job}/cancel")
    assert (answer.status, answer.json["state"]) == (202, "deleting_volumes")
    assert_problem(api.ask("POST", f"/v1/jobs/{job}/resolve"), "job_not_waiting")
    done = api.ask("POST", "/v1/vms/db1/snapshots", {}).json["id"]
    api.fleet.complete(api.fleet.service.show_job(done))
    assert_problem(api.ask("POST", f"/v1/jobs/{done}/cancel"), "job_finished")


def test_an_operator_lets_a_waiting_job_ask_again(api: Front) -> None:
    job = api.ask("POST", CREATE, {}).json["id"]
    fleet = api.fleet
    fleet.answer(created(fleet.last()))
    for _ in range(30):
        if fleet.service.show_job(job).state == "needs_operator":
            break
        fleet.answer(observed(Outcome.BAD, code="repair_failed"))
    assert fleet.service.show_job(job).state == "needs_operator"
    answer = api.ask("POST", f"/v1/jobs/{job}/resolve", {"host_was_rebooted": True})
    assert (answer.status, answer.json["state"]) == (202, "probing")
    assert_problem(api.ask("POST", f"/v1/jobs/{job}/resolve", {"host_was_rebooted": "yes"}), "request_malformed")


LOCK = "/v1/vms/web1/lock"


def test_a_machine_is_locked_and_unlocked(api: Front) -> None:
    key = new_id()
    lock = api.ask("POST", LOCK, {"reason": "nightly backup", "ttl_s": 60}, Idempotency_Key=key)
    assert (lock.status, lock.json["reason"]) == (200, "nightly backup")
    assert lock.json["until"].endswith("Z")
    assert api.ask("POST", LOCK, {"reason": "nightly backup", "ttl_s": 60}, Idempotency_Key=key).json == lock.json
    assert api.ask("GET", "/v1/vms/web1").json["lock"] == lock.json
    for refused in (api.ask("POST", CREATE, {}), api.ask("POST", LOCK, {"reason": "clone"})):
        assert_problem(refused, "vm_busy")
        assert "nightly backup" in refused.json["detail"]
    assert_problem(api.ask("DELETE", f"{LOCK}?lock={new_id()}"), "vm_busy")
    assert api.ask("DELETE", f"{LOCK}?lock={lock.json['id']}").json == lock.json
    assert_problem(api.ask("DELETE", LOCK), "vm_not_locked")
    assert api.ask("POST", CREATE, {}).status == 202
    assert_problem(api.ask("POST", LOCK, {"reason": "clone"}), "vm_busy")


@pytest.mark.parametrize(
    "body",
    [{}, {"reason": 1}, {"reason": ""}, {"reason": "x", "ttl_s": 0}, {"reason": "x", "ttl_s": 1e3}, {"why": "x"}],
)
def test_a_lock_that_cannot_be_is_refused(calm: Front, body: dict[str, Any]) -> None:
    assert_problem(calm.ask("POST", LOCK, body), "request_malformed")


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/v1/vms/nobody", "vm_not_found"),
        ("/v1/vms/nobody/snapshots", "vm_not_found"),
        ("/v1/vms/a%00b", "request_malformed"),
        ("/v1/vms/" + "x" * 700, "request_malformed"),
        ("/v1/vms/%ff%fe", "vm_not_found"),
        ("/v1/vms/", "vm_not_found"),
        ("/v1/snapshots/web1/none", "snapshot_not_found"),
        ("/v1/snapshots/%2e%2e/%2e%2e", "vm_not_found"),
        ("/v1/jobs/none", "job_not_found"),
        ("/v1/jobs/none/events", "job_not_found"),
        ("/v1/jobs/%0a", "request_malformed"),
        ("/v1/nowhere", "not_found"),
        ("/nowhere", "not_found"),
    ],
)
def test_what_is_not_there_is_said(calm: Front, path: str, code: str) -> None:
    assert_problem(calm.ask("GET", path), code)


BAD_BODIES = {
    "not json": b"{",
    "empty": b"",
    "not utf-8": b'{"name": "\xff"}',
    "a list": b"[]",
    "null": b"null",
    "too deep": b"[" * 50_000,
    "huge": b'{"description": "' + b"x" * 300_000 + b'"}',
    "number out of range": b'{"name": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_a_body_that_cannot_be_read_is_refused(calm: Front, body: bytes) -> None:
    assert_problem(calm.ask("POST", CREATE, body), "request_malformed")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 5),
        ("nmae", "one"),
        ("description", "x" * 5000),
        ("description", "\x00"),
        ("disks", "vda"),
        ("disks", [1]),
        ("disks", ["vda"] * 1000),
        ("quiesce", None),
        ("dry_run", "yes"),
    ],
)
def test_a_wrong_field_is_named(calm: Front, field: str, value: Any) -> None:
    answer = calm.ask("POST", CREATE, {field: value})
    assert_problem(answer, "request_malformed")
    assert field in answer.json["detail"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"quiesce": "perhaps"}, "quiesce_mode_unknown"),
        ({"name": "a\x1b[2Jb"}, "name_invalid"),
        ({"name": "x" * 256}, "name_invalid"),
        ({"name": ""}, "name_invalid"),
        ({"name": "half a character \ud800"}, "name_invalid"),
        ({"disks": ["vdz"]}, "disk_unknown"),
        ({"disks": ["../../x"]}, "disk_unknown"),
        ({"disks": ["vdb"]}, "disk_shareable"),
    ],
)
def test_a_request_that_cannot_be_carried_out_is_refused(calm: Front, body: dict[str, Any], code: str) -> None:
    assert_problem(calm.ask("POST", CREATE, body), code)


@pytest.mark.parametrize("key", ["", "x" * 256, "caf\xe9"])
def test_an_impossible_idempotency_key_is_refused(calm: Front, key: str) -> None:
    assert_problem(calm.ask("POST", CREATE, {}, Idempotency_Key=key), "request_malformed")


@pytest.mark.parametrize(
    ("token", "headers"),
    [
        pytest.param(None, {}, id="none"),
        pytest.param("wrong", {}, id="wrong"),
        pytest.param("", {}, id="empty"),
        pytest.param(f"{TOKEN}x", {}, id="longer"),
        pytest.param(None, {"Authorization": f"Basic {TOKEN}"}, id="another scheme"),
        pytest.param("sha256:" + hashlib.sha256(TOKEN.encode()).hexdigest(), {}, id="the hash instead of the token"),
    ],
)
def test_a_wrong_token_gets_nothing(calm: Front, token: str | None, headers: dict[str, str]) -> None:
    for path in ("/v1/jobs", "/v1/nowhere"):
        answer = calm.ask("GET", path, token=token, **headers)
        assert_problem(answer, "token_wrong")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert_problem(calm.ask("POST", CREATE, b"{", token=token, **headers), "token_wrong")


def test_a_changed_token_file_counts_at_once(api: Front) -> None:
    api.token_file.write_text("sha256:" + hashlib.sha256(b"another").hexdigest())
    assert_problem(api.ask("GET", "/v1/jobs"), "token_wrong")
    assert api.ask("GET", "/v1/jobs", token="another").status == 200


def test_a_wrong_method_is_refused(calm: Front) -> None:
    assert_problem(calm.ask("DELETE", "/v1/jobs"), "not_found")


def test_health_and_metrics_need_no_token_and_name_nobody(api: Front) -> None:
    api.ask("POST", CREATE, {})
    health = api.ask("GET", "/healthz", token=None)
    assert (health.status, health.json["status"], health.json["jobs_by_state"]) == (200, "ok", {"creating_volumes": 1})
    text = api.ask("GET", "/metrics", token=None).content.decode()
    assert 'livesnap_jobs{kind="snapshot",outcome="running",state="creating_volumes"} 1.0' in text
    assert "livesnap_outbox_open 1.0" in text
    assert 'livesnap_guests_frozen{host="h1"} 0.0' in text
    assert "web1" not in text


def test_a_job_waits_for_a_broker_that_is_away(api: Front) -> None:
    api.fleet.broker_is_up = False
    answer = api.ask("POST", CREATE, {})
    assert (answer.status, answer.json["waiting_for"]) == (202, "the message broker")
    assert "livesnap_outbox_unpublished 1.0" in api.ask("GET", "/metrics").content.decode()


def test_the_openapi_description_knows_every_route(calm: Front) -> None:
    paths = calm.ask("GET", "/openapi.json", token=None).json["paths"]
    assert {
        "/v1/audit",
        "/v1/doctor",
        "/v1/tokens",
        "/v1/tokens/{token}",
        "/v1/hosts",
        "/v1/vms",
        "/v1/vms/{vm}",
        "/v1/vms/{vm}/snapshots",
        "/v1/vms/{vm}/lock",
        "/v1/vms/{vm}/commit",
        "/v1/vms/{vm}/undo",
        "/v1/snapshots/delete",
        "/v1/snapshots/{snapshot}",
        "/v1/snapshots/{snapshot}/preview",
        "/v1/snapshots/{snapshot}/revert",
        "/v1/jobs",
        "/v1/jobs/{job}",
        "/v1/jobs/{job}/cancel",
        "/v1/jobs/{job}/resolve",
        "/v1/hosts/{host}",
        "/v1/hosts/{host}/drain",
        "/v1/hosts/{host}/remove",
        "/v1/hosts/{host}/resume",
        "/v1/pools",
        "/v1/storage-domains",
        "/v1/dead-letters",
        "/v1/limits",
        "/v1/jobs/{job}/events",
        "/healthz",
        "/readyz",
        "/metrics",
    } == set(paths)


def frames(content: bytes) -> list[tuple[str, str | None, Any]]:
    """Return the events of a stream as (kind, id, data); signs of life left out."""
    found = []
    for block in content.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if "event" in fields:
            found.append((fields["event"], fields.get("id"), json.loads(fields["data"])))
    return found


def test_events_of_a_finished_job_are_its_timeline_and_the_job(api: Front) -> None:
    job = api.ask("POST", CREATE, {}).json["id"]
    api.fleet.complete(api.fleet.service.show_job(job))
    answer = api.ask("GET", f"/v1/jobs/{job}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = frames(answer.content)
    assert [(kind, number) for kind, number, _ in events] == [
        ("step", "1"),
        ("step", "2"),
        ("step", "3"),
        ("job", None),
    ]
    assert [data["step"] for _, _, data in events[:3]] == ["creating_volumes", "pivoting", "completed"]
    assert events[-1][2] == api.ask("GET", f"/v1/jobs/{job}").json


@pytest.mark.parametrize(("last", "first"), [("2", "3"), ("0", "1"), ("nonsense", "1"), ("99", None)])
def test_events_go_on_after_the_last_one_seen(api: Front, last: str, first: str | None) -> None:
    job = api.ask("POST", CREATE, {}).json["id"]
    api.fleet.complete(api.fleet.service.show_job(job))
    events = frames(api.ask("GET", f"/v1/jobs/{job}/events", Last_Event_ID=last).content)
    assert events[0][:2] == (("step", first) if first else ("job", None))
    assert events[-1][0] == "job"


def resent(api: Front) -> bool:
    api.fleet.relay.sweep()
    return bool(api.fleet.sent)


def test_events_arrive_while_the_job_runs_and_end_with_it(api: Front) -> None:
    api.fleet.broker_is_up = False
    job = api.ask("POST", CREATE, {}).json["id"]
    with ThreadPoolExecutor() as pool:
        stream = pool.submit(api.ask, "GET", f"/v1/jobs/{job}/events")
        api.fleet.broker_is_up = True
        eventually(lambda: resent(api), timeout_s=10, what="the relay to send")
        api.fleet.complete(api.fleet.service.show_job(job))
        events = frames(stream.result(timeout=20).content)
    assert [kind for kind, _, _ in events if kind != "waiting"] == ["step", "step", "step", "job"]
    assert events[1][2] == {"state": "creating_volumes", "waiting_for": "the message broker"}
    assert events[-1][2]["state"] == "completed"
