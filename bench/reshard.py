"""Bytes fetched by ranks that need slices of what was saved: from few to many ranks, from many to few, from a whole."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import click
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from bench import workload
from bench.contenders import CONTENDERS, OURS, PEER, Contender, installed
from bench.measure import Sample, Trial
from bench.options import Settings, benchmark
from bench.report import Bar, Report
from bench.storage import Storage, Traffic, open_storage
from bench.transfer import WrongBytes
from bench.worker import Worker, measure_together, take_turns, workers

FETCHED, REQUESTS, SECONDS, CPU = "bytes fetched / needed", "requests", "seconds", "client CPU s/GB, all ranks"

#: How many ranks saved and how many load; 1 saves whole tensors.
CASES = ((1, 4), (4, 2), (2, 4))

#: Along which dimension the tensors are sharded.
DIMENSIONS = (0, 1)


@dataclass
class RankTrial(Trial):
    """One rank that saves or loads its shards; the arguments are what and the URL.

    Attributes:
        contender: does it.
        nbytes: of the whole tensors.
        rank, ranks: this one, and how many.
        dimension: that is sharded; vectors always along their only one.
        meeting: a file that does not exist yet, where the ranks find one another.
    """

    contender: Contender
    nbytes: int
    rank: int
    ranks: int
    dimension: int
    meeting: str

    def prepare(self) -> None:  # noqa: D102
        self.contender.import_modules()
        dist.init_process_group("gloo", init_method=f"file://{self.meeting}", rank=self.rank, world_size=self.ranks)
        mesh = init_device_mesh("cpu", (self.ranks,))
        self._locals: workload.State = {}
        self._state: workload.State = {}
        for name, tensor in workload.mixed(self.nbytes).items():
            dimension = min(self.dimension, tensor.ndim - 1)
            self._locals[name] = tensor.chunk(self.ranks, dimension)[self.rank].clone(
                memory_format=torch.contiguous_format
            )
            self._state[name] = (
                DTensor.from_local(self._locals[name], mesh, [Shard(dimension)], run_check=False)
                if self.ranks > 1
                else self._locals[name]
            )
        self._crcs = workload.crcs(self._locals)
        self.payload_bytes = workload.size(self._locals)

    def before(self, what: str, url: str) -> None:  # noqa: ARG002, D102
        if what == "load":
            workload.wipe(self._locals)
        dist.barrier()

    def run(self, what: str, url: str) -> None:  # noqa: D102
        if what == "save":
            dcp.save(self._state, storage_writer=self.contender.writer(url))
        else:
            dcp.load(self._state, storage_reader=self.contender.reader(url))

    def after(self, what: str, url: str) -> None:  # noqa: ARG002, D102
        if workload.crcs(self._locals) != self._crcs:
            raise WrongBytes(url)


def group(contender: Contender, nbytes: int, ranks: int, dimension: int, folder: str) -> dict[int, RankTrial]:
    """The trials of all ranks."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        meeting = file.name + ".meeting"
    return {rank: RankTrial(contender, nbytes, rank, ranks, dimension, meeting) for rank in range(ranks)}


@click.option(
    "--dimension", "dimensions", multiple=True, type=int, default=DIMENSIONS, show_default=True, help="Repeatable."
)
@benchmark(size_gb=0.3, rounds=2)
def reshard(settings: Settings, *, dimensions: tuple[int, ...]) -> Report:
    """Count the bytes that ranks fetch when they need slices of what was saved."""
    report = Report("resharding", plotted=(FETCHED, SECONDS))
    with (
        tempfile.TemporaryDirectory() as folder,
        open_storage(settings.place, reserve_bytes=2 * settings.nbytes) as storage,
    ):
        for dimension in dimensions:
            for saved, loading in CASES:
                variant = f"dim {dimension}: {saved if saved > 1 else 'whole'} → {loading}"
                results = _case(settings, storage, saved, loading, dimension, folder)
                _add_rows(report, variant, results)
                ours, peer = report.median(OURS, variant, FETCHED), report.median(PEER, variant, FETCHED)
                bar = 1.05 if dimension == 0 else peer
                if bar is not None:
                    report.bars.append(Bar.at_most(f"{variant}: bytes fetched beside bytes needed", bar, ours))
    return report


Result = tuple[list[Sample], Traffic | None]


def _case(
    settings: Settings, storage: Storage, saved: int, loading: int, dimension: int, folder: str
) -> Mapping[str, Sequence[Result]]:
    """Save with some ranks, load with others: the samples of all ranks and their traffic, by contender."""
    url = storage.url(f"{saved}-to-{loading}-dim-{dimension}")
    with workers(group(CONTENDERS[OURS], settings.nbytes, saved, dimension, folder), storage.environ) as ranks:
        measure_together(list(ranks.values()), "save", url)
    trials = {
        (name, rank): trial
        for name, one in installed(settings.contenders).items()
        for rank, trial in group(one, settings.nbytes, loading, dimension, folder).items()
    }
    with workers(trials, storage.environ) as started:
        groups: dict[str, list[Worker]] = {}
        for (name, _), worker in started.items():
            groups.setdefault(name, []).append(worker)
        works = {
            name: partial(storage.observe, partial(measure_together, ranks_of, "load", url))
            for name, ranks_of in groups.items()
        }
        return take_turns(works, rounds=settings.rounds, warmup=1)


def _add_rows(report: Report, variant: str, results: Mapping[str, Sequence[Result]]) -> None:
    for name, rounds in results.items():
        needed = sum(sample.payload_bytes for sample in rounds[0][0])
        report.add(name, variant, {
            FETCHED: [seen.nbytes / needed for _, seen in rounds if seen],
            REQUESTS: [seen.requests for _, seen in rounds if seen],
            SECONDS: [max(sample.seconds for sample in samples) for samples, _ in rounds],
            CPU: [sum(sample.cpu_s for sample in samples) / needed * 1e9 for samples, _ in rounds],
        })  # fmt: skip
