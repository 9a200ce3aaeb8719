"""Measuring one piece of work in this process: wall time, CPU time of all threads, peak of the resident memory."""

from __future__ import annotations

import gc
import resource
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True)
class Sample:
    """What one piece of work took.

    Attributes:
        seconds: wall time.
        cpu_s: CPU time of this process, all threads.
        extra_bytes: peak of the resident memory above what it was before the process's first run.
        payload_bytes: that were to be moved.
        notes: what the work itself has to report, by name.
    """

    seconds: float
    cpu_s: float
    extra_bytes: int
    payload_bytes: int = 0
    notes: Mapping[str, float] = field(default_factory=dict)


class Trial(ABC):
    """Work to measure, again and again, in a process of its own; picklable until it is prepared.

    The arguments choose among variants of the work; all three methods get the same ones.

    Attributes:
        payload_bytes: that a run is to move.
    """

    payload_bytes = 0

    def prepare(self) -> None:  # noqa: B027  # nothing, for most
        """What is done once, unmeasured: imports, tensors."""

    def before(self, *args: Any) -> None:  # noqa: B027  # nothing, for most
        """What is done before each measurement."""

    @abstractmethod
    def run(self, *args: Any) -> Mapping[str, float] | None:
        """The work. What it returns is noted in the sample."""

    def after(self, *args: Any) -> None:  # noqa: B027  # nothing, for most
        """What is done after each measurement: checks."""


class Meter:
    """Measures a prepared trial, and keeps in mind how much memory the process had before the first run."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._resident_bytes = 0

    def measure(self, *args: Any) -> Sample:
        """Run the trial once."""
        trial = self._trial
        trial.before(*args)
        gc.collect()
        resident_bytes = _restart_peak()
        self._resident_bytes = self._resident_bytes or resident_bytes
        cpu_s, start_s = time.process_time(), time.perf_counter()
        notes = trial.run(*args)
        seconds, cpu_s = time.perf_counter() - start_s, time.process_time() - cpu_s
        extra_bytes = max(0, _peak_bytes() - self._resident_bytes)
        trial.after(*args)
        return Sample(seconds, cpu_s, extra_bytes, trial.payload_bytes, notes or {})


def _restart_peak() -> int:
    """Have the kernel take the peak afresh, where it can; returns the resident bytes now."""
    try:
        _CLEAR.write_text("5")
    except OSError:  # not Linux, or not allowed: the peak is the process's
        return _peak_bytes()
    return _status_bytes("VmRSS")


def _peak_bytes() -> int:
    if _STATUS.exists():
        return _status_bytes("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _status_bytes(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
