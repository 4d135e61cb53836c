"""The layers of the exploration: in each, a few kinds of mishap happen so often, in every order and at every moment.

`LAYERS` are run by the suite; `DEEP` takes minutes, and is run by `make model`. `RESIDUALS` are what no rule of ours
closes.
"""

from tests.model.invariants import Kind
from tests.model.world import Budget, Config

LAYERS: dict[str, Config] = {
    # ---- crashes of our own processes, and of libvirtd
    "agent-twice": Config(budget=Budget(agent=2, timeout=1)),
    "agent-and-libvirtd": Config(budget=Budget(agent=1, libvirtd=1)),
    "lost-connections": Config(budget=Budget(connection=2, timeout=1)),
    "reboot": Config(budget=Budget(reboot=1, agent=1)),
    "SPM": Config(budget=Budget(spm=1, spm_stop=1, timeout=1, cancel=1)),
    "agent-that-never-returns": Config(budget=Budget(agent=1, freeze_late=1, overtaken=1), agent_returns=False),
    "host-that-dies-for-good": Config(budget=Budget(death=1, timeout=1, word=1)),
    # ---- messages, people who wait
    "messages-lost-and-refused": Config(budget=Budget(loss=1, refusal=2, timeout=1)),
    "cancelled": Config(budget=Budget(cancel=1, agent=1, timeout=1)),
    "asked-again": Config(budget=Budget(word=2, timeout=2)),
    # ---- freezing
    "late-freeze": Config(budget=Budget(freeze_late=1, overtaken=1, agent=1, guard=1)),
    "late-agent-that-never-returns": Config(budget=Budget(slow=1, agent=1), agent_returns=False),
    "failing-freeze": Config(budget=Budget(freeze_fails=1, freeze_late=1, slow=1), mode="best-effort"),
    "thawed-by-others": Config(budget=Budget(virsh_thaw=1, slow=1, agent=1)),
    "frozen-by-others": Config(budget=Budget(virsh_freeze=2, agent=1)),
    "quiescing-required": Config(mode="require", budget=Budget(agent=1, timeout=1)),
    "quiescing-required-and-thawed-by-others": Config(mode="require", budget=Budget(virsh_thaw=1, slow=1, pause=1)),
    "no-guest-agent": Config(budget=Budget(agent=1, timeout=1), guest_agent=False),
    # ---- what users do to the machine
    "stopped": Config(budget=Budget(stop=1, agent=1)),
    "off": Config(budget=Budget(stop=1, agent=1), begins="off"),
    "saved": Config(budget=Budget(save=1, agent=1), asks_operator=True),
    "off-started-and-saved": Config(budget=Budget(save=1, stop=1), begins="off", asks_operator=True),
    "paused": Config(budget=Budget(pause=1, agent=1), begins="paused"),
    "virsh-snapshot": Config(budget=Budget(virsh_snapshot=1, agent=1), asks_operator=True),
    # ---- writes that fail
    "IO-error": Config(budget=Budget(io_error=1, agent=1)),
    "IO-error-libvirtd": Config(budget=Budget(io_error=1, libvirtd=1)),
    "IO-error-failing-rollback": Config(budget=Budget(io_error=1, commit_fails=1, libvirtd=1), asks_operator=True),
    # ---- two disks
    "partial-switch": Config(disks=2, budget=Budget(partial=1, agent=1)),
    "two-disks-libvirtd": Config(disks=2, budget=Budget(libvirtd=1, spm=1), asks_operator=True),
    # ---- two hosts
    "migrated": Config(hosts=2, budget=Budget(migrate=1, timeout=1)),
    "migrated-twice": Config(hosts=2, budget=Budget(migrate=2)),
    "migrated-stopped": Config(hosts=2, budget=Budget(migrate=1, stop=1)),
    "migrated-lost-connection": Config(hosts=2, budget=Budget(migrate=1, connection=1)),
    "migrated-there-and-back": Config(hosts=2, mode="never", budget=Budget(migrate=2, connection=1)),
    "migrated-agent": Config(hosts=2, budget=Budget(migrate=1, agent=1), asks_operator=True),
    "migrated-failing-rollback": Config(
        hosts=2, budget=Budget(io_error=1, commit_fails=1, migrate=1), asks_operator=True
    ),
    "migrated-host-dies-for-good": Config(hosts=2, budget=Budget(migrate=1, death=1, timeout=1), asks_operator=True),
    # ---- two jobs, one after the other
    "two-jobs": Config(jobs=2, budget=Budget(agent=1, timeout=1)),
    "two-jobs-cancelled": Config(jobs=2, budget=Budget(cancel=1, timeout=2)),
    "two-jobs-stopped": Config(jobs=2, budget=Budget(stop=1, timeout=1)),
    "two-jobs-sleeping-SPM": Config(jobs=2, budget=Budget(spm_stop=1, timeout=1)),
}

DEEP: dict[str, Config] = {
    "agent-three-times": Config(budget=Budget(agent=3, timeout=2)),
    "agent-libvirtd-delays": Config(budget=Budget(agent=2, libvirtd=1, timeout=1)),
    "agent-libvirtd-lost-connection": Config(budget=Budget(agent=1, libvirtd=1, connection=1, timeout=1)),
    "libvirtd-reboot-stop": Config(budget=Budget(libvirtd=1, reboot=1, stop=1), asks_operator=True),
    "off-libvirtd": Config(budget=Budget(libvirtd=1, stop=2, agent=1), begins="off", asks_operator=True),
    "SPM-agent": Config(budget=Budget(spm=1, spm_stop=1, timeout=2, agent=1)),
    "saved-and-stopped": Config(budget=Budget(save=1, stop=1, agent=1, timeout=1), asks_operator=True),
    "IO-error-crashes": Config(budget=Budget(io_error=1, commit_fails=1, agent=1, libvirtd=1), asks_operator=True),
    "two-disks-partial-stop": Config(
        disks=2, budget=Budget(libvirtd=1, partial=1, stop=1, agent=1), asks_operator=True
    ),
    "migrated-agent-delay": Config(hosts=2, budget=Budget(migrate=2, agent=1, timeout=1), asks_operator=True),
    "migrated-reboot": Config(hosts=2, budget=Budget(migrate=1, reboot=1, timeout=1), asks_operator=True),
    "migrated-IO-error": Config(hosts=2, budget=Budget(migrate=1, io_error=1, agent=1), asks_operator=True),
    "migrated-two-jobs": Config(hosts=2, jobs=2, budget=Budget(migrate=1, timeout=2)),
    "two-jobs-libvirtd": Config(jobs=2, budget=Budget(agent=1, libvirtd=1, timeout=1)),
    "two-jobs-everything-slow": Config(jobs=2, budget=Budget(timeout=3, cancel=1, loss=1, word=1)),
}

RESIDUALS: dict[str, tuple[Config, Kind]] = {
    "R1: migrated before a live XML that lies was repaired": (
        Config(hosts=2, budget=Budget(libvirtd=1, migrate=1)),
        Kind.WRITES_LOST,
    ),
    "R1: saved before a live XML that lies was repaired": (
        Config(budget=Budget(libvirtd=1, save=1)),
        Kind.WRITES_LOST,
    ),
    "R2: thawed and frozen again by others within one window": (
        Config(budget=Budget(virsh_thaw=1, virsh_freeze=1)),
        Kind.WRONG_LABEL,
    ),
    "R4: migrated away and back while the call was queued, then a reboot, if migrations took the live definition": (
        Config(hosts=2, budget=Budget(migrate=2, reboot=1), definition_travels=False, asks_operator=True),
        Kind.WRITES_LOST,
    ),
    "R7: a migration that leaves the definition behind": (
        Config(hosts=2, budget=Budget(migrate=1), keeps_definition=True),
        Kind.FALSE_COMPLETED,
    ),
}
