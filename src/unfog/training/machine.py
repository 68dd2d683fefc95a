"""What this process holds of the machine, and what the machine has."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import time
from pathlib import Path

import torch

LOADING = 30.0  # seconds of age from which on a process does other things too, so that its age is none of a run's
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MEMORY, LIMIT = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")


def _field(name: str, file: Path = STATUS) -> int | None:
    """Bytes of a line of /proc/self/status or /proc/meminfo, where there is one (Linux)."""
    try:
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _largest() -> int:
    """The most memory that this process ever held, in bytes."""
    try:
        import resource
        import sys

        unit = 1 if sys.platform == "darwin" else 1024
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
    except ImportError:  # Windows
        return 0


def resident() -> int:
    """Bytes of memory that this process holds now (where the system does not say: the most it ever held)."""
    found = _field("VmRSS")
    return _largest() if found is None else found


def _give_back() -> None:
    """Gives memory that is free within this process back to the system: what fills it again then shows as growth."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # a C library without it: musl, macOS, Windows
        ctypes.CDLL(None).malloc_trim(0)


class Peak:
    """`with Peak() as peak`: afterwards `peak.growth` bytes is how far memory rose above what was held at the start.

    `peak.device` is the same of a GPU, `Peak.highest` the most held under any of them. Where the peak cannot be set back
    (not Linux), only a new record counts.
    """

    growth = device = highest = 0

    def __enter__(self) -> Peak:
        _give_back()
        self.before = resident()
        with contextlib.suppress(OSError):
            RESET.write_text("5")  # sets VmHWM back to what is held now; man 5 proc
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self.held = torch.cuda.memory_allocated()
        return self

    def __exit__(self, *_: object) -> None:
        most = _field("VmHWM") or _largest()
        self.growth, Peak.highest = max(most - self.before, 0), max(most, Peak.highest)
        if torch.cuda.is_available():
            self.device = int(torch.cuda.max_memory_allocated() - self.held)


def start_clock() -> None:
    """A run or an estimate begins: from now on its time counts, and what a program that was just started took to load."""
    global _began
    loading = _age()
    _began = time.monotonic() - (loading if loading < LOADING else 0.0)


def since_start() -> float:
    """Seconds since `start_clock`."""
    return time.monotonic() - _began


def _age() -> float:
    """Seconds since this process started; 3 where the system does not say (what loading torch takes)."""
    try:
        started = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]) / os.sysconf(
            "SC_CLK_TCK"
        )
        return max(time.clock_gettime(time.CLOCK_BOOTTIME) - started, 0.0)
    except (OSError, ValueError, IndexError, AttributeError):
        return 3.0


def memory() -> int | None:
    """Bytes of memory that can be had without swapping, within the limit of a container; None where the system does not say."""
    found = [_field("MemAvailable", MEMORY)]
    with contextlib.suppress(OSError, ValueError):  # no container; no limit reads "max"
        found.append(int(LIMIT.read_text(encoding="utf-8")))
    return min((size for size in found if size is not None), default=None)


def crowded() -> bool:
    """Whether others hold the cores that torch's threads of this process would share."""
    try:
        return torch.get_num_threads() > 1 and os.getloadavg()[0] > (os.cpu_count() or 1) + 0.5
    except OSError:
        return False


_began = time.monotonic()
start_clock()
