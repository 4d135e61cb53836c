"""Bad input and bad luck: refused at once with a stable code and a sentence, or waited for by name; nothing is lost."""

from collections.abc import Iterator

import pytest

from tests.bed.disks import make_disk
from tests.bed.paths import give
from tests.bed.vm import BedVm, define_vm
from tests.bed.vm_spec import DiskSpec, VmSpec
from tests.e2e.kit import Livesnap, Place, Said, place, writer_went_on
from tests.wait import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.needs("guest", "redis-server"), pytest.mark.xdist_group("refusals")]


@pytest.fixture(scope="module")
def here() -> Iterator[Place]:
    """An isolated host."""
    with place() as opened:
        yield opened


@pytest.fixture(scope="module")
def livesnap(here: Place) -> Iterator[Livesnap]:
    """A running livesnap on it."""
    with here.livesnap() as running:
        yield running


@pytest.fixture(scope="module")
def vm(here: Place, livesnap: Livesnap) -> BedVm:
    """A guest with a data disk, a shareable one, and one outside the storage domain."""
    outside = here.root / "elsewhere"
    outside.mkdir(mode=0o755)
    give(outside, here.host.owner)
    owner = here.host.owner
    spec = VmSpec(
        name="mixed",
        disks=(
            DiskSpec(path=make_disk(here.storage / "mixed-vda.qcow2", owner=owner)),
            DiskSpec(
                path=make_disk(here.storage / "mixed-vdb.raw", fs=None, format="raw", owner=owner),
                format="raw",
                target="vdb",
                shareable=True,
            ),
            DiskSpec(path=make_disk(outside / "mixed-vdc.qcow2", fs=None, owner=owner), target="vdc"),
        ),
    )
    guest = define_vm(here.host, spec)
    guest.start()
    guest.wait_ready()
    guest.wait_agent()
    livesnap.shows(guest)
    return guest


def refused(said: Said) -> str:
    """Check that a refusal is one, with a code, a sentence and a hint, and return the code."""
    assert said.status == 2, f"status {said.status}: {said.out} {said.err}"
    error = said.json["error"]
    assert error["message"]
    assert error["hint"]
    code: str = error["code"]
    return code


@pytest.mark.parametrize(
    ("words", "code"),
    [
        pytest.param(("no-such-machine",), "vm_not_found", id="unknown machine"),
        pytest.param(("mixed", "--disk", "vdz"), "disk_unknown", id="unknown disk"),
        pytest.param(("mixed", "--disk", "vdb"), "disk_shareable", id="shareable disk"),
        pytest.param(("mixed", "--disk", "vdc"), "disk_outside_storage_domain", id="disk outside"),
        pytest.param(("mixed", "--name", "a\x1b[31mred"), "name_invalid", id="control character"),
        pytest.param(("mixed", "--name", "n" * 256), "name_invalid", id="256 characters"),
        pytest.param(("mixed", "--quiesce", "perhaps"), "quiesce_mode_unknown", id="unknown mode"),
    ],
)
def test_refused_at_once(here: Place, livesnap: Livesnap, vm: BedVm, words: tuple[str, ...], code: str) -> None:
    jobs, volumes = livesnap.json("job", "list"), here.volumes()
    assert refused(livesnap.run("snapshot", "create", *words, "--json")) == code
    assert livesnap.json("job", "list") == jobs
    assert here.volumes() == volumes


def test_a_wrong_token(livesnap: Livesnap, vm: BedVm) -> None:
    assert refused(livesnap.run("--token", "wrong", "vm", "list", "--json")) == "token_wrong"


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b'{"name": 7}', b'{"surprise": true}', b'{"disks": "vda"}', b"\xff\xfe"],
)
def test_malformed_json(livesnap: Livesnap, vm: BedVm, body: bytes) -> None:
    status, problem = livesnap.post("/v1/vms/mixed/snapshots", body)
    assert status == 422
    assert problem["code"] == "request_malformed"
    assert problem["detail"]


def test_unnamed_disks_are_left_out_and_listed(here: Place, livesnap: Livesnap, vm: BedVm) -> None:
    assert livesnap.run("snapshot", "create", "mixed", "--name", "partly").status == 0
    snapshot = livesnap.json("snapshot", "show", "mixed/partly")
    assert [disk["target"] for disk in snapshot["disks"]] == ["vda"]
    assert {disk["target"]: disk["reason"] for disk in snapshot["excluded"]} == {
        "vdb": "disk_shareable",
        "vdc": "disk_outside_storage_domain",
    }
    assert snapshot["partial"] is True
    assert refused(livesnap.run("snapshot", "create", "mixed", "--name", "partly", "--json")) == "name_taken"
    writer_went_on(vm)


def test_a_second_job_on_a_busy_machine(livesnap: Livesnap, vm: BedVm) -> None:
    with livesnap.stopped("hostagent.worker"):
        first = livesnap.json("snapshot", "create", "mixed", "--name", "first", "--no-wait")
        said = livesnap.run("snapshot", "create", "mixed", "--json")
        assert refused(said) == "vm_busy"
        assert first["id"] in said.json["error"]["message"]
    assert livesnap.wait_for_end(first["id"])["state"] == "completed"
    writer_went_on(vm)


def test_a_hostile_header_is_refused_before_any_tool_opens_it(here: Place, livesnap: Livesnap) -> None:
    """The guest's own disk claims an external data file; nothing may follow it."""
    path = make_disk(here.storage / "evil.qcow2", owner=here.host.owner)
    define_vm(here.host, VmSpec(name="evil", disks=(DiskSpec(path=path),)))
    with path.open("r+b") as file:
        file.seek(72)
        file.write((1 << 2).to_bytes(8, "big"))  # incompatible feature bit 2: external data file
    eventually(lambda: livesnap.json("vm", "show", "evil").get("id"), timeout_s=20, what="evil in the inventory")
    said = livesnap.run("snapshot", "create", "evil", "--json")
    assert said.status in (1, 2)
    error = said.json["error"]
    assert error["code"] == "header_refused", error
    assert livesnap.json("snapshot", "list", "evil") == []


def is_well(livesnap: Livesnap) -> bool:
    """Tell whether the SPM and the host have reported the storage domain as it should be."""
    said = livesnap.run("snapshot", "create", "mixed", "--dry-run", "--json")
    return said.status == 0


def test_storage_that_is_not_mounted(here: Place, livesnap: Livesnap, vm: BedVm) -> None:
    """A job that meets the missing storage says so, makes nothing, and can be ended once it is back."""
    away = here.root / "away"
    here.storage.rename(away)
    here.storage.mkdir()
    try:
        waiting = livesnap.run("snapshot", "create", "mixed", "--name", "late", "--no-wait", "--json")
        assert waiting.status == 0, waiting.err
        job_id = waiting.json["id"]
        eventually(
            lambda: (livesnap.job(job_id)["error"] or {}).get("code") == "storage_unavailable",
            timeout_s=30,
            what="the job's reason",
        )
        assert "storage" in livesnap.job(job_id)["waiting_for"]
        assert livesnap.run("job", "cancel", job_id).status == 0
    finally:
        here.storage.rmdir()
        away.rename(here.storage)
    eventually(lambda: is_well(livesnap), timeout_s=45, what="the storage domain to be seen mounted again")
    job = livesnap.wait_for_end(job_id)
    assert (job["state"], job["error"]["code"]) == ("rolled_back", "job_cancelled")
    assert "late" not in [snapshot["name"] for snapshot in livesnap.json("snapshot", "list", "mixed")]
    writer_went_on(vm)


def test_broker_down_is_waited_for_by_name(here: Place, livesnap: Livesnap, vm: BedVm) -> None:
    with livesnap.broker_stopped():
        said = livesnap.run("snapshot", "create", "mixed", "--no-wait", "--json")
        assert said.status == 0, said.err
        job_id = said.json["id"]
        eventually(
            lambda: "broker" in livesnap.job(job_id)["waiting_for"], timeout_s=40, what="`waiting_for` the broker"
        )
    assert livesnap.wait_for_end(job_id)["state"] == "completed"
    writer_went_on(vm)


def test_libvirt_down_is_waited_for_with_its_host(here: Place, livesnap: Livesnap, vm: BedVm) -> None:
    here.host.kill9()
    try:
        said = livesnap.run("snapshot", "create", "mixed", "--no-wait", "--json")
        assert said.status == 0, said.err
        job_id = said.json["id"]
        waiting = eventually(lambda: livesnap.job(job_id)["waiting_for"], timeout_s=20, what="what the job waits for")
        eventually(lambda: "h1" in livesnap.job(job_id)["waiting_for"], timeout_s=20, what=f"the host in {waiting}")
        assert livesnap.json("host", "list")[0]["state"] == "libvirt_down"
    finally:
        here.host.start()
    assert livesnap.wait_for_end(job_id)["state"] == "completed"
    writer_went_on(vm)
