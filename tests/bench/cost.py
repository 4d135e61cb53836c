"""What a process costs, by the kernel's own count: memory, processor time, wake-ups."""

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def pss_mib(pids: Iterable[int]) -> float:
    """Return the proportional memory of these processes together, each shared page divided among those who have it."""
    return sum(_pss_kib(pid) for pid in pids) / 1024


def _pss_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def cpu_s(pids: Iterable[int]) -> float:
    """Return the processor time that these processes have had (all threads, also those that have ended), in s."""
    total = 0.0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    return total


def exact_cpu_s(pids: Iterable[int]) -> float:
    """Return the processor time of the threads that live, in s, by the scheduler's own clock: ticks are too coarse for
    a process that sleeps."""
    found = (path.read_text().split()[0] for pid in pids for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return sum(int(nanoseconds) for nanoseconds in found) / 1e9


def cpu_ms_by_kind(kinds: Mapping[str, str]) -> dict[str, float]:
    """Return the processor time, in ms, of all processes of this machine whose command line has the word of a kind,
    with that of their children that have ended."""
    found = dict.fromkeys(kinds, 0.0)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace")
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        kind = next((kind for kind, word in kinds.items() if word in words), None)
        if kind:
            found[kind] += sum(map(int, fields[11:15])) * 1000 / TICKS_PER_S
    return found


def wake_ups(pids: Iterable[int]) -> int:
    """Return how often the threads that live have gone to sleep by themselves, and so been woken."""
    total = 0
    for pid in pids:
        for status in Path(f"/proc/{pid}/task").glob("*/status"):
            lines = status.read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches:"))
    return total


def family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


def pace_ms() -> float:
    """Return how long a bare interpreter takes from start to end here and now, in ms: the median of nine, some 0.4 s.

    Not a loop of Python's: on a machine whose calls to the kernel had become slower by a third that took as long as
    before, and everything that is measured here took longer.
    """
    took = []
    for _ in range(9):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True)
        took.append((time.perf_counter() - begun) * 1000)
    return median(took)
