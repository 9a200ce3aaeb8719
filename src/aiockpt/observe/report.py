"""Reports: what a save or load did, in numbers. Frozen values that pickle, print as one line and go to JSON."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Kind = Literal["save", "load"]


class Phase(enum.StrEnum):
    """What a save or load spends its time on.

    Plan, transfer and commit follow one another; staging and verification are the calling thread's share of the
    transfer, and run while bytes move.
    """

    PLAN = "plan"  # from the first call to the first byte wanted: reading metadata, looking at the path, DCP's planning
    TRANSFER = "transfer"  # until everything has landed, or every object stands
    STAGING = "staging"  # of a save: resolving tensors, CRC32s, copies of what cannot be sent from where it is
    VERIFY = "verify"  # of a load: checking, copying and committing what has landed
    COMMIT = "commit"  # of a save: writing the metadata


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a save or load is.

    Attributes:
        done_bytes: that have landed, or are with the service.
        total_bytes: that are to be; it may grow while the gaps of sliced tensors are being found.
        requests: ended so far.
        elapsed_s: since it began.
        rate: bytes a second, over the time in which bytes moved.
        remaining_s: at that rate; None: not known yet.
    """

    done_bytes: int
    total_bytes: int
    requests: int
    elapsed_s: float
    rate: float
    remaining_s: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """What one rank's save or load did, or that of several ranks together (``merge``).

    Attributes:
        kind: "save" or "load".
        uri: of the checkpoint.
        rank: whose; None: of several together.
        ranks: how many.
        elapsed_s: from the first call to the last; of several ranks, the longest.
        phases: seconds in each phase (see ``Phase``); of several ranks, the longest.
        first_byte_s: from the begin of the transfer to the first byte of the first answer; None: there was none.
        cpu_s: CPU seconds of the calling thread, within aiockpt, and of the loop threads, which concurrent saves
            and loads share.
        wanted_bytes: of the elements and objects to be loaded, or of the data objects written; and of the metadata.
        received_bytes, sent_bytes: bytes of objects moved, gaps and repetitions included.
        operations: requests of each kind, by S3's names.
        retries: requests that belong to a second or later try.
        hedges: requests that repeated one that took long.
        throttles: answers by which the service asked to slow down.
        slices: tensors of which only a slice was wanted.
        stretches: byte ranges that they were fetched as.
        unproven_bytes: of elements and objects that were loaded with no CRC32 to compare with, since whoever saved
            them noted none. 0 with ``checksum="off"``, which does not look.
    """

    kind: Kind
    uri: str
    rank: int | None = 0
    ranks: int = 1
    elapsed_s: float = 0.0
    phases: Mapping[str, float] = field(default_factory=dict)
    first_byte_s: float | None = None
    cpu_s: float = 0.0
    wanted_bytes: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    operations: Mapping[str, int] = field(default_factory=dict)
    retries: int = 0
    hedges: int = 0
    throttles: int = 0
    slices: int = 0
    stretches: int = 0
    unproven_bytes: int = 0

    @property
    def requests(self) -> int:
        """All requests."""
        return sum(self.operations.values())

    @property
    def moved_bytes(self) -> int:
        """Bytes of objects that went over the network in this direction."""
        return self.sent_bytes if self.kind == "save" else self.received_bytes

    @property
    def amplification(self) -> float:
        """Bytes moved for each byte wanted; 1 if none was."""
        return self.moved_bytes / self.wanted_bytes if self.wanted_bytes else 1.0

    @property
    def gb_per_s(self) -> float:
        """Wanted gigabytes (1e9) a second of the transfer phase."""
        seconds = self.phases.get(Phase.TRANSFER, 0.0)
        return self.wanted_bytes / seconds / 1e9 if seconds else 0.0

    @property
    def cpu_s_per_gb(self) -> float:
        """CPU seconds for each wanted gigabyte (1e9)."""
        return self.cpu_s / self.wanted_bytes * 1e9 if self.wanted_bytes else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Fields and derived numbers, for JSON."""
        derived = ("requests", "amplification", "gb_per_s", "cpu_s_per_gb")
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}

    def __str__(self) -> str:
        who = f"{self.ranks} ranks" if self.rank is None else f"rank {self.rank}"
        parts = [
            f"{self.kind} {self.uri} ({who}): {in_units(self.wanted_bytes)} in {self.elapsed_s:.3g} s",
            f"{self.gb_per_s:.3g} GB/s",
            f"requests {self.requests}",
            f"retries {self.retries}",
            f"hedges {self.hedges}",
            f"amplification {self.amplification:.3f}",
            f"CPU {self.cpu_s_per_gb:.3g} s/GB",
        ]
        if self.unproven_bytes:
            parts.append(f"not compared {in_units(self.unproven_bytes)}")
        return ", ".join(parts)


def merge(reports: Sequence[Report]) -> Report:
    """The reports of several ranks as one: counts and CPU are added, times are the longest.

    Raises:
        ValueError: there are none, or they are not of one save or load.
    """
    if len({(report.kind, report.uri) for report in reports}) != 1:
        raise ValueError("only reports of one save or load can be merged, and at least one of them")
    first_bytes = [report.first_byte_s for report in reports if report.first_byte_s is not None]
    operations: Counter[str] = Counter()
    phases: dict[str, float] = {}
    for report in reports:
        operations.update(report.operations)
        phases |= {name: max(seconds, phases.get(name, 0.0)) for name, seconds in report.phases.items()}
    sums = {name: sum(getattr(report, name) for report in reports) for name in _SUMMED}
    return Report(
        kind=reports[0].kind,
        uri=reports[0].uri,
        rank=reports[0].rank if len(reports) == 1 else None,
        elapsed_s=max(report.elapsed_s for report in reports),
        phases=phases,
        first_byte_s=min(first_bytes, default=None),
        operations=dict(operations),
        **sums,
    )


_SUMMED = (
    "ranks", "cpu_s", "wanted_bytes", "received_bytes", "sent_bytes", "retries", "hedges", "throttles", "slices",
    "stretches", "unproven_bytes",
)  # fmt: skip


def in_units(nbytes: float) -> str:
    """Bytes as people say them, in powers of 1000, as rates are given."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.4g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.4g} TB"
