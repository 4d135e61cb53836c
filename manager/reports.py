"""Reports to inventory: what hosts and SPMs tell unasked, each in one transaction.

A report that is lost or refused does no harm: the next one says as much. A new incarnation of a consumer may have lost
what its predecessor had taken off the queue, so what it has not answered is sent again at once.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection

from common import logs
from common.clock import Clock
from common.ids import StorageDomainId, VmId
from common.messaging.keys import Keyring
from common.messaging.messages import Answer
from common.messaging.reports import HostReport, SpmReport
from common.messaging.shell import Handler
from common.messaging.wire import Envelope
from manager import sighting
from manager.store import lost_hosts, outbox, sightings
from manager.store.session import Database

_log = logs.get()


class Reports:
    """Takes reports. Safe to share between threads."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        keyring: Keyring,
        *,
        wake_relay: Callable[[], None],
        look_early: Callable[[VmId, str], None],
        silent_after: timedelta,
    ) -> None:
        """Record in `database`; `keyring` tells a host that was removed from one that was given a new key since;
        `wake_relay` is called when something has become due for re-sending, `look_early` with each vm of which a merge
        may be over, and who says so. A host that was not heard from for
        `silent_after` is no rival to another that has the same vm."""
        self._database = database
        self._clock = clock
        self._keyring = keyring
        self._silent_after = silent_after
        self._wake_relay = wake_relay
        self._look_early = look_early

    def handlers(self) -> dict[type, Handler]:
        """Return who takes which report, for the shell."""
        return {HostReport: self.take_host, SpmReport: self.take_spm}

    def take_host(self, envelope: Envelope, report: HostReport) -> Answer | None:
        """Record a host and its vms. Raises LivesnapError(database_unavailable); then nothing is recorded."""
        resent, now = 0, self._clock.now()
        with self._database.write() as connection:
            if not self._is_admitted(connection, envelope, report):
                return None
            newer, started = sightings.is_news(connection, envelope.sender, report, now)
            if started:
                resent = outbox.wake(connection, envelope.sender, now)
            if newer:
                sightings.record_host(connection, report, now)
            told = report if newer else sightings.still_news(connection, report)
            if told.libvirt_up and (newer or told.vms):
                self._record_vms(connection, told)
        self._conclude(envelope, report, newer=newer, resent=resent)
        return None

    def _is_admitted(self, connection: Connection, envelope: Envelope, report: HostReport) -> bool:
        """Tell whether a host may speak: not one that was removed, unless it has been given another key since.

        Its key is gone from the folder of the process that removed it; a Manager elsewhere revokes it here.
        """
        known = lost_hosts.removed(connection, report.host_id)
        if known is None:
            return True
        key = self._keyring.public_text(envelope.sender)
        if key and key not in known.revoked_keys:
            lost_hosts.admit(connection, report.host_id)
            _log.warning("host.admitted", host=report.host_id, removed_at=known.at.isoformat())
            return True
        if key:
            self._keyring.revoke(envelope.sender)
        _log.warning("host.refused", host=report.host_id, removed_at=known.at.isoformat())
        return False

    def _record_vms(self, connection: Connection, report: HostReport) -> None:
        ids, silent_before = sorted(vm.vm_id for vm in report.vms), self._clock.now() - self._silent_after
        known = sightings.known_vms(connection, report.host_id, ids, silent_before=silent_before)
        place = sighting.Place(host=report.host_id, mounted=_mounted(report))
        findings = [sighting.find(vm, place, known.get(vm.vm_id)) for vm in report.vms]
        sightings.record_vms(connection, report, known, findings, self._clock.now())
        self._log_alarms(known, findings)

    def take_spm(self, envelope: Envelope, report: SpmReport) -> Answer | None:
        """Record a pool and its storage domains. Raises LivesnapError(database_unavailable)."""
        resent, now = 0, self._clock.now()
        with self._database.write() as connection:
            newer, started = sightings.is_news(connection, envelope.sender, report, now)
            if started:
                resent = outbox.wake(connection, envelope.sender, now)
            if newer:
                sightings.record_pool(connection, report, now)
        self._conclude(envelope, report, newer=newer, resent=resent)
        return None

    def _conclude(self, envelope: Envelope, report: HostReport | SpmReport, *, newer: bool, resent: int) -> None:
        if not newer:
            _log.info(
                "report.ignored", sender=envelope.sender, sequence=report.sequence, reason="overtaken or repeated"
            )
        if resent:
            _log.info("resend.woken", queue=envelope.sender, steps=resent, incarnation=report.incarnation)
            self._wake_relay()
        for vm in report.merges:
            self._look_early(vm, envelope.sender)

    def _log_alarms(self, known: dict[Any, sighting.Known], findings: list[sighting.Finding]) -> None:
        for finding in findings:
            was = known[finding.vm].off_chain if finding.vm in known else ""
            if finding.off_chain != was:
                _log.warning("vm.off_chain", vm=finding.vm, name=finding.name, detail=finding.off_chain or "resolved")


def _mounted(report: HostReport) -> frozenset[StorageDomainId]:
    mounts = report.storage_domains
    return frozenset(mount.storage_domain_id for mount in mounts if mount.storage_domain_id and not mount.problem)
