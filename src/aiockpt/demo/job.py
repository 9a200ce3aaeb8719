"""What a worker process is told and what it reports: plain values that travel as JSON files.

Knows nothing of torch, processes or S3. No credential is ever part of a job: they reach workers by environment only.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

#: Parameters are sharded along their first dimension. As long as each shard of each parameter is a whole number of
#: two AVX-512 vectors of float32 (32 elements, the widest stride of torch's CPU loops), element-wise kernels treat an
#: element alike in a shard and in the whole, and so do not round differently.
SHARD_ELEMENTS = 32


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
        report: where the report is left.
        group: file over which the processes of a distributed run find each other.
    """

    recipe: Recipe
    place: Place
    seed: int
    until: int
    load: bool
    save: bool
    tamper: str | None
    report: Path
    group: Path

    def write(self, path: Path) -> None:
        """Leave the job for a worker to read."""
        path.write_text(json.dumps(dataclasses.asdict(self), default=str))

    @classmethod
    def read(cls, path: Path) -> Job:
        """The job that `write` left."""
        fields = json.loads(path.read_text())
        fields["recipe"] = Recipe(**fields["recipe"])
        fields["place"] = Place(**fields["place"])
        fields["report"], fields["group"] = Path(fields["report"]), Path(fields["group"])
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Transfer:
    """One save or load: its wall time in seconds, and what the checkpoint then is in the bucket."""

    seconds: float
    objects: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker did.

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

    def write(self, path: Path) -> None:
        """Leave the report for whoever gave the job."""
        path.write_text(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Report:
        """The report that `write` left."""
        fields = json.loads(path.read_text())
        if fields["transfer"] is not None:
            fields["transfer"] = Transfer(**fields["transfer"])
        return cls(**fields)
