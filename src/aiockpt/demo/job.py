"""What worker processes are told and what they report: plain values, as JSON files in a folder that they share.

Knows nothing of torch, processes or S3. No credential is ever part of a job: they reach workers by environment only.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Parameters are sharded along their first dimension. As long as each shard of each parameter is a whole number of
#: two AVX-512 vectors of float32 (32 elements, the widest stride of torch's CPU loops), element-wise kernels treat an
#: element alike in a shard and in the whole, and so do not round differently.
SHARD_ELEMENTS = 32

#: How the name of a rank's last words ends, after ``rank<n>``.
FAILURE_SUFFIX = ".failure.txt"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is trained, and for how long.

    Attributes:
        steps: optimizer steps of the whole run.
        save_at: steps after which the checkpoint is written; the rest is trained by those who resume.
        layers, dim, heads: size of the transformer.
        context: tokens (bytes of text) that a sequence has.
        batch: sequences that each shard of the data has at a step.
        shards: data shards of a step. A process of a distributed run trains on one, a single process on all in turn.
    """

    steps: int = 12
    save_at: int = 6
    layers: int = 4
    dim: int = 256
    heads: int = 4
    context: int = 64
    batch: int = 4
    shards: int = 1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name} must be at least 1")
        if self.save_at >= self.steps:
            raise ValueError(f"save_at ({self.save_at}) must leave steps to resume for, of {self.steps}")
        granule = SHARD_ELEMENTS * self.shards
        if self.dim % self.heads or self.dim % granule:
            raise ValueError(f"dim ({self.dim}) must be a multiple of heads ({self.heads}) and of {granule}")

    @property
    def is_order_free(self) -> bool:
        """Whether the sum of the shards' gradients is the same in every order, and so for every count of processes."""
        return self.shards <= 2


@dataclass(frozen=True, slots=True)
class Place:
    """Where the checkpoint lies: its URI, the region of its bucket, and an endpoint if it is not AWS's."""

    uri: str
    region: str
    endpoint_url: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One worker's part of a run.

    Attributes:
        recipe: the run.
        place: the checkpoint that is loaded first, or saved last.
        seed: where the fresh weights and random streams come from. Who resumes gets another one than who began.
        until: the step to stop at.
        load: begin by loading the checkpoint.
        save: end by saving the checkpoint.
        tamper: flip one bit of this parameter after loading, to show that the comparison would notice.
    """

    recipe: Recipe
    place: Place
    seed: int
    until: int
    load: bool = False
    save: bool = False
    tamper: str | None = None

    def write(self, folder: Path) -> None:
        """Leave the job for the workers."""
        (folder / "job.json").write_text(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Job:
        """The job that `write` left."""
        fields = json.loads((folder / "job.json").read_text())
        fields["recipe"], fields["place"] = Recipe(**fields["recipe"]), Place(**fields["place"])
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Transfer:
    """One save or load: its wall time in seconds, and what the checkpoint then is in the bucket."""

    seconds: float
    objects: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Report:
    """What a rank did, or all ranks of a run.

    Attributes:
        losses: by "step s, shard n", every bit of each loss (hexadecimal).
        began: fingerprints of the state after loading, by name; empty if nothing was loaded.
        ended: fingerprints of the state at the end, by name; what was saved, if anything was.
        transfer: the load or the save; None if there was neither.
    """

    losses: dict[str, str]
    began: dict[str, str]
    ended: dict[str, str]
    transfer: Transfer | None

    def write(self, folder: Path, rank: int) -> None:
        """Leave a rank's report for whoever gave the job."""
        (folder / f"rank{rank}.json").write_text(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def read(cls, folder: Path, ranks: int) -> Report:
        """What all ranks did; the transfer is rank 0's, for it is collective.

        Raises:
            FileNotFoundError: a rank left no report.
        """
        reports = [cls._of_rank(folder, rank) for rank in range(ranks)]
        return cls(
            _merged([report.losses for report in reports]),
            _merged([report.began for report in reports]),
            _merged([report.ended for report in reports]),
            reports[0].transfer,
        )

    @classmethod
    def _of_rank(cls, folder: Path, rank: int) -> Report:
        fields = json.loads((folder / f"rank{rank}.json").read_text())
        transfer = fields.pop("transfer")
        return cls(**fields, transfer=transfer and Transfer(**transfer))


def _merged(ranks: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The entries of all ranks; where ranks disagree about a name, the entry says so, and so equals no other."""
    entries: dict[str, set[str]] = {}
    for rank in ranks:
        for name, value in rank.items():
            entries.setdefault(name, set()).add(value)
    return {name: " on one rank, on another ".join(sorted(values)) for name, values in entries.items()}
