"""The four chapters. Each runs real commands, then checks from outside what they said."""

from tests.bed.oracle import examine
from tests.demo import proofs
from tests.demo.stage import Full, Stage, is_running


def quiesced(stage: Stage) -> None:
    """(a) A guest with an agent: frozen for a moment, switched, thawed."""
    teller, livesnap, vm = stage.teller, stage.livesnap, stage.web1
    teller.say(
        "web1 has a guest agent. livesnap makes an empty volume, has the agent freeze the file systems, lets QEMU"
        " switch to the new volume in one call, and thaws. Another process watches: it thaws if livesnap dies"
        " meanwhile."
    )
    livesnap.shown("vm", "list")
    livesnap.shown("vm", "show", "web1")
    before, chain, acknowledged = vm.sources()["vda"], proofs.chain_of(stage, vm), vm.last_ack()
    status, job = livesnap.take("web1", "--name", "before-upgrade")
    teller.claim("the job is completed, exit status 0", job and (status, job["state"]) == (0, "completed"), job)
    livesnap.shown("snapshot", "show", "web1/before-upgrade")
    livesnap.shown("vm", "show", "web1")

    teller.say("So it says. Now the proof, from outside:")
    proofs.straight_way(stage, job)
    snapshot = livesnap.json("snapshot", "show", "web1/before-upgrade")
    receipt = snapshot["receipt"]
    teller.claim(
        f"the receipt: {receipt['frozen_filesystems']} file system frozen, {receipt['thawed_filesystems']} thawed, held"
        f" for {receipt['held_ms']:.1f} ms; the guard had nothing to do; hence labelled filesystem-consistent",
        receipt["frozen_filesystems"] == receipt["thawed_filesystems"] == 1
        and not receipt["guard_fired"]
        and snapshot["consistency"] == "filesystem",
        snapshot,
    )
    proofs.on_new_volume(stage, vm, before)
    proofs.chain_has_grown(stage, vm, chain)
    finding = proofs.whole_up_to_the_switch(stage, vm, snapshot, acknowledged)
    clean = "the file system in the snapshot is clean: dumpe2fs shows no needs_recovery"
    teller.claim(clean, not finding.needs_recovery, finding)
    proofs.writer_went_on(stage, vm)
    proofs.stands_still(stage, vm, snapshot)


def without_an_agent(stage: Stage) -> None:
    """(b) A guest without an agent: tried, and initiated again without quiescing."""
    teller, livesnap, vm = stage.teller, stage.livesnap, stage.mail1
    teller.say(
        "mail1 has no guest agent. The snapshot is attempted with quiescing; the host answers that nobody is there to"
        " freeze; it is initiated again without. Such a snapshot is like the disk after a power cut, and says so."
    )
    before, acknowledged = vm.sources()["vda"], vm.last_ack()
    status, job = livesnap.take("mail1", "--name", "nightly")
    teller.claim("the job is completed, exit status 0", job and (status, job["state"]) == (0, "completed"), job)
    livesnap.shown("job", "show", job["id"])
    livesnap.shown("snapshot", "show", "mail1/nightly")

    teller.say("The proof:")
    tried = [(attempt["quiesce"], attempt["outcome"]) for attempt in job["attempts"] if attempt["to"] == "host.h1"]
    teller.claim(
        "attempted with quiescing (no agent, nothing happened), then without (switched)",
        tried == [(True, "none_no_agent"), (False, "all_new")],
        tried,
    )
    snapshot = livesnap.json("snapshot", "show", "mail1/nightly")
    label = (snapshot["consistency"], snapshot["consistency_reason"])
    teller.claim("it is labelled crash-consistent, because not quiesced", label == ("crash", "not_quiesced"), label)
    proofs.on_new_volume(stage, vm, before)
    finding = proofs.whole_up_to_the_switch(stage, vm, snapshot, acknowledged)
    teller.claim(
        "the label is right: dumpe2fs shows needs_recovery, the journal is replayed at the next mount",
        finding.needs_recovery,
        finding,
    )
    proofs.writer_went_on(stage, vm)


def shareable_disk(stage: Stage) -> None:
    """(c) A disk that cannot be snapshotted, named in the request: refused at once."""
    teller, livesnap, vm = stage.teller, stage.livesnap, stage.web1
    teller.say(
        "web1's vdb is shareable: other machines may write to it, and one machine's snapshot of it would be worth"
        " nothing. In chapter (a) nobody asked for it, and it was left out and listed. Who names it is refused."
    )
    snapshot = livesnap.json("snapshot", "show", "web1/before-upgrade")
    left_out = {disk["target"]: disk["reason"] for disk in snapshot["excluded"]}
    sources, volumes, jobs = vm.sources(), stage.here.volumes(), livesnap.json("job", "list")
    status, job = livesnap.take("web1", "--disk", "vdb")
    code = livesnap.run("snapshot", "create", "web1", "--disk", "vdb", "--json").json["error"]["code"]
    teller.claim("refused: exit status 2, code disk_shareable", (status, code) == (2, "disk_shareable"), (status, code))
    unchanged = livesnap.json("job", "list") == jobs and stage.here.volumes() == volumes and vm.sources() == sources
    teller.claim("nothing was created: no job, no volume, and the machine is where it was", not job and unchanged, job)
    teller.claim("chapter (a) had left it out and said so", left_out == {"vdb": "disk_shareable"}, left_out)


def full_file_system(stage: Stage, full: Full) -> None:
    """(d) The switch succeeds and the first write fails: brought back without losing anything."""
    teller, livesnap, vm, small = stage.teller, stage.livesnap, full.db1, full.small
    small.fill()
    teller.say(
        f"db1's disk lies on a small file system that is now full: {small.fs.free_bytes // 1024} KiB are left, enough"
        " for an empty volume and for nothing that a guest writes into it. (livesnap refuses below 64 MiB of room;"
        " it was started with that limit lowered.) QEMU will switch, and the very first write will fail. The guest is"
        " then stopped, but not told; livesnap commits what the new volume holds into the previous one, puts the"
        " machine back, and lets it go on."
    )
    before = vm.sources()
    status, job = livesnap.take("db1", "--name", "too-late")
    state = job and (status, job["state"], (job["error"] or {}).get("code"))
    teller.claim(
        "the job is rolled back, exit status 1, code volume_not_writable",
        state == (1, "rolled_back", "volume_not_writable"),
        state,
    )
    livesnap.shown("job", "show", job["id"])

    teller.say("The proof:")
    outcomes = {attempt["outcome"] for attempt in job["attempts"] if attempt["step"] == "pivoting"}
    teller.claim(
        "the switch had succeeded: QEMU was on the new volume, and was brought back by a commit",
        outcomes == {"none_rolled_back"},
        outcomes,
    )
    teller.claim(
        "the machine runs, thawed, on its previous volume, in its live and in its persistent definition",
        is_running(vm) and vm.freeze_status() == "thawed" and vm.sources() == vm.sources(persistent=True) == before,
        (vm.state(), vm.sources(), vm.sources(persistent=True)),
    )
    proofs.writer_went_on(stage, vm)
    listed = livesnap.json("snapshot", "list", "db1")
    teller.claim("the new volume is gone, and no snapshot is listed", not small.volumes() and not listed, listed)
    _nothing_lost(stage, full)


def _nothing_lost(stage: Stage, full: Full) -> None:
    """Pull the plug, and look for every record that the guest was told is safe."""
    vm = full.db1
    vm.pause()
    acknowledged = vm.last_ack()
    vm.destroy()
    finding = examine(vm.spec.disks[0].path)
    stage.teller.claim(
        f"not one acknowledged write is lost: the plug was pulled after record {acknowledged}, and the disk holds"
        f" records 1 to {len(finding.records)}",
        finding.fsck_rc == 0
        and finding.records == tuple(range(1, len(finding.records) + 1))
        and len(finding.records) >= acknowledged,
        (finding.fsck_rc, len(finding.records), acknowledged),
    )
