"""Every command and observation that crosses a queue. Pure: what may be said, and what saying it claims.

Commands go out (`spm.*` to the SPM, `host.*` to a host's agents); answers and reports come back to the Manager.
Answers are observations, never "ok": an error is not an outcome (DESIGN, P3).

    Command = CreateVolumes | AdoptVolumes | DeleteVolumes | InspectVolumes | InspectHost | SurveyStorage
            | SurveyHost | Check | Pivot | Redefine | Probe | Repair
            | MarkMerge | MergeVolumes | FinishMerge | MergeDisks | CheckMerge
    Answer  = VolumesCreated | VolumesDeleted | VolumesInspected | HostInspected | StorageSurveyed
            | HostSurveyed | Checked | LeavesObserved | MergeSeen | Failed | Refused
    Report  = HostReport | SpmReport          (common.messaging.reports)

Each lies with those that travel the same way (`to_spm`, `to_host`, `surveys`, `merging`) and can be had from here.

Which job, step and attempt a message belongs to, its deadline and its signature are the envelope's matter
(`common.messaging.wire`).
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from common.messaging.merging import CheckMerge, FinishMerge, MarkMerge, MergeDisks, MergeSeen, MergeVolumes
from common.messaging.surveys import HostSurveyed, StorageSurveyed, SurveyHost, SurveyStorage
from common.messaging.to_host import (
    Check,
    Checked,
    DiskObserved,
    LeavesObserved,
    Outcome,
    Pivot,
    Probe,
    Redefine,
    Repair,
)
from common.messaging.to_spm import (
    Adoption,
    AdoptVolumes,
    CreateVolumes,
    DeleteVolumes,
    HostInspected,
    InspectHost,
    InspectVolumes,
    Kept,
    KeptVolume,
    VolumeFound,
    VolumesCreated,
    VolumesDeleted,
    VolumesInspected,
)
from common.messaging.volumes import (
    DiskSwitch,
    Format,
    VolumeAt,
)

__all__ = [
    "AdoptVolumes",
    "Adoption",
    "Answer",
    "Check",
    "CheckMerge",
    "Checked",
    "Command",
    "CreateVolumes",
    "DeleteVolumes",
    "DiskObserved",
    "DiskSwitch",
    "Failed",
    "FinishMerge",
    "Format",
    "HostInspected",
    "HostSurveyed",
    "InspectHost",
    "InspectVolumes",
    "Kept",
    "KeptVolume",
    "LeavesObserved",
    "MarkMerge",
    "MergeDisks",
    "MergeSeen",
    "MergeVolumes",
    "Outcome",
    "Pivot",
    "Probe",
    "Redefine",
    "Refusal",
    "Refused",
    "Repair",
    "StorageSurveyed",
    "SurveyHost",
    "SurveyStorage",
    "VolumeAt",
    "VolumeFound",
    "VolumesCreated",
    "VolumesDeleted",
    "VolumesInspected",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The command could not be carried out; `code` is a stable word of the error tree. It claims nothing about what
    exists: a CreateVolumes that failed may have made some volumes."""

    op: Literal["failed"] = "failed"
    code: str
    message: str
    hint: str = ""


class Refusal(StrEnum):
    """Why a consumer did not even start."""

    STALE = "stale"
    """A higher attempt of this vm is on its record."""
    EXPIRED = "expired"
    """The deadline has passed."""
    BUSY = "busy"
    """The same vm is being worked on by another handler; the answer to that will come."""
    NOT_READY = "not_ready"
    """What it needs is not there now (libvirt, a mounted storage domain). Nothing was touched."""
    VERSION = "version"
    """The message's schema version is newer than this process."""
    MALFORMED = "malformed"
    """The signature is good but the content cannot be understood."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Not started, and nothing touched. `highest` is the highest attempt on the consumer's record (0: none).

    `code` is the error tree's word for what is missing (`storage_unavailable`, `libvirt_unavailable`, …), '' for none.
    """

    op: Literal["refused"] = "refused"
    why: Refusal
    message: str
    code: str = ""
    highest: int = 0


Command = (
    CreateVolumes
    | AdoptVolumes
    | DeleteVolumes
    | InspectVolumes
    | InspectHost
    | SurveyStorage
    | SurveyHost
    | Check
    | Pivot
    | Redefine
    | Probe
    | Repair
    | MarkMerge
    | MergeVolumes
    | FinishMerge
    | MergeDisks
    | CheckMerge
)
Answer = (
    VolumesCreated
    | VolumesDeleted
    | VolumesInspected
    | HostInspected
    | StorageSurveyed
    | HostSurveyed
    | Checked
    | LeavesObserved
    | MergeSeen
    | Failed
    | Refused
)
