"""Medians of measurements with their spread, and the machine that they were taken on."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

_CPUINFO = Path("/proc/cpuinfo")
_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some measurements, the least and the largest of them."""

    median: float
    least: float
    largest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of one measurement at least."""
        ordered = sorted(values)
        return cls(statistics.median(ordered), ordered[0], ordered[-1])


def hardware() -> str:
    """The machine and the versions, in a line."""
    model = platform.processor() or platform.machine()
    if _CPUINFO.exists():
        named = [line.partition(":")[2].strip() for line in _CPUINFO.read_text().splitlines() if "model name" in line]
        model = named[0] if named else model
    memory = ""
    if _MEMINFO.exists():
        memory = f", {int(_MEMINFO.read_text().split()[1]) / 1e6:.0f} GB"
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores of {model}{memory}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, load average {load:.1f}"
    )


def significant(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"
