"""``dcp.load`` and ``dcp.save`` as trials, and rounds of them: what most benchmarks are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch.distributed.checkpoint as dcp

from aiockpt.model import MiB
from bench import workload
from bench.bare import BareLoad, BareSave, new_client, split_url
from bench.contenders import BARE, CONTENDERS, OURS, Contender, installed
from bench.measure import Sample, Trial
from bench.report import Report
from bench.storage import Storage, Traffic, delete_below
from bench.worker import take_turns, workers

#: Columns of the reports.
GB_S, CPU, EXTRA = "GB/s", "client CPU s/GB", "extra MiB"
BUSIEST, OTHERS = "busiest loop thread, CPU s/GB", "other loop threads, CPU s/GB"
REQUESTS, BYTES, SERVER_CPU = "requests", "bytes moved / needed", "server CPU s/GB"

#: A sample, and the traffic that the server saw meanwhile.
Observed = tuple[Sample, Traffic | None]


class WrongBytes(Exception):
    """A load that did not bring what was saved."""


@dataclass
class LoadTrial(Trial):
    """``dcp.load`` of the mixed tensors; the argument names the URL. Every tensor that comes is checked."""

    contender: Contender
    nbytes: int

    def prepare(self) -> None:  # noqa: D102
        self.contender.import_modules()
        self._state = workload.mixed(self.nbytes)
        self.payload_bytes = workload.size(self._state)
        self._crcs = workload.crcs(self._state)

    def before(self, url: str) -> None:  # noqa: ARG002, D102
        workload.wipe(self._state)

    def run(self, url: str) -> Mapping[str, float]:  # noqa: D102
        with thread_times(self.contender) as spent:
            dcp.load(self._state, storage_reader=self.contender.reader(url), no_dist=True)
        return spent

    def after(self, url: str) -> None:  # noqa: D102
        if self.contender.moves_bytes and workload.crcs(self._state) != self._crcs:
            raise WrongBytes(url)


@dataclass
class SaveTrial(Trial):
    """``dcp.save`` of the mixed tensors; the arguments are the URL and the number of objects.

    Attributes:
        anew: save to a new path below the URL each time, as to the folder of a training's next step, and delete the
            checkpoint afterwards, unmeasured. Otherwise each save replaces what the one before has left at the URL.
    """

    contender: Contender
    nbytes: int
    anew: bool = False

    def prepare(self) -> None:  # noqa: D102
        self.contender.import_modules()
        self._state = workload.mixed(self.nbytes)
        self.payload_bytes = workload.size(self._state)
        self._client = new_client() if self.anew else None  # not otherwise, lest it warm up what is to be measured
        self._step = 0

    def before(self, url: str, objects: int = 1) -> None:  # noqa: ARG002, D102
        self._step += self.anew
        self._path = f"{url}/{self._step}" if self.anew else url

    def run(self, url: str, objects: int = 1) -> Mapping[str, float]:  # noqa: ARG002, D102
        with thread_times(self.contender) as spent:
            dcp.save(self._state, storage_writer=self.contender.writer(self._path, objects), no_dist=True)
        return spent

    def after(self, url: str, objects: int = 1) -> None:  # noqa: ARG002, D102
        if self.anew:
            delete_below(self._client, *split_url(self._path))


@contextmanager
def thread_times(contender: Contender) -> Iterator[dict[str, float]]:
    """CPU seconds in the block of each thread that moves bytes, by name; filled at its end."""
    before, spent = contender.thread_cpu_s(), dict[str, float]()
    yield spent
    spent.update({name: total - before.get(name, 0.0) for name, total in contender.thread_cpu_s().items()})


def write_checkpoints(storage: Storage, nbytes: int, objects: Iterable[int]) -> dict[int, str]:
    """Save the mixed tensors once into each number of objects; returns the URLs."""
    urls = {count: storage.url(f"{count}-objects") for count in objects}
    with workers({OURS: SaveTrial(CONTENDERS[OURS], nbytes)}, storage.environ) as started:
        for count, url in urls.items():
            started[OURS].measure(url, count)
    return urls


def label(objects: int) -> str:
    """How a variant is called."""
    return f"{objects} object{'s' * (objects > 1)}"


def load_rounds(
    storage: Storage,
    nbytes: int,
    contenders: Sequence[str],
    objects: Sequence[int],
    rounds: int,
    *,
    bare: BareLoad | None = None,
) -> dict[tuple[str, str], list[Observed]]:
    """Rounds of ``dcp.load`` by all contenders, and of the bare receive loop, by (contender, variant)."""
    urls = write_checkpoints(storage, nbytes, objects)
    trials: dict[str, Trial] = {name: LoadTrial(one, nbytes) for name, one in installed(contenders).items()}
    trials[BARE] = bare or BareLoad()
    with workers(trials, storage.environ) as started:
        works = {
            (name, label(count)): partial(storage.observe, partial(worker.measure, urls[count]))
            for count in objects
            for name, worker in started.items()
        }
        return take_turns(works, rounds=rounds)


def save_rounds(
    storage: Storage,
    nbytes: int,
    contenders: Sequence[str],
    objects: Sequence[int],
    rounds: int,
    *,
    bare: BareSave | None = None,
    anew: bool = False,
) -> dict[tuple[str, str], list[Observed]]:
    """Rounds of ``dcp.save`` by all contenders, and of the bare send loop.

    Each contender saves over its own checkpoint, or ``anew``. Over each other's they would leave objects behind that
    no metadata know, and the server ever less memory that it has used before.
    """
    trials: dict[str, Trial] = {name: SaveTrial(one, nbytes, anew) for name, one in installed(contenders).items()}
    trials[BARE] = bare or BareSave(nbytes)
    with workers(trials, storage.environ) as started:
        works = {
            (name, label(count)): partial(
                storage.observe, partial(worker.measure, storage.url(f"saved-{name}-{count}"), count)
            )
            for count in objects
            for name, worker in started.items()
            if name != BARE
        }
        works[BARE, ""] = partial(storage.observe, partial(started[BARE].measure, storage.url("saved")))
        return take_turns(works, rounds=rounds)


def add_rows(report: Report, results: Mapping[tuple[str, str], Sequence[Observed]]) -> None:
    """A row for each contender and variant: speed, cost, memory, traffic."""
    for (contender, variant), observed in results.items():
        samples = [sample for sample, _ in observed]
        traffic = [(seen, sample.payload_bytes) for sample, seen in observed if seen is not None]
        report.add(contender, variant, {
            GB_S: [sample.payload_bytes / sample.seconds / 1e9 for sample in samples],
            CPU: [sample.cpu_s / sample.payload_bytes * 1e9 for sample in samples],
            EXTRA: [sample.extra_bytes / MiB for sample in samples],
            REQUESTS: [seen.requests for seen, _ in traffic],
            BYTES: [seen.nbytes / nbytes for seen, nbytes in traffic],
            SERVER_CPU: [seen.server_cpu_s / nbytes * 1e9 for seen, nbytes in traffic],
        })  # fmt: skip


def add_thread_rows(report: Report, results: Mapping[tuple[str, str], Sequence[Observed]]) -> None:
    """As ``add_rows``, for where the time of single threads is the question."""
    for (contender, variant), observed in results.items():
        samples = [sample for sample, _ in observed]
        times = [sorted(sample.notes.values(), reverse=True) for sample in samples if sample.notes]
        sizes = [sample.payload_bytes / 1e9 for sample in samples if sample.notes]
        report.add(contender, variant, {
            GB_S: [sample.payload_bytes / sample.seconds / 1e9 for sample in samples],
            CPU: [sample.cpu_s / sample.payload_bytes * 1e9 for sample in samples],
            BUSIEST: [spent[0] / size for spent, size in zip(times, sizes, strict=True)],
            OTHERS: [sum(spent[1:]) / size for spent, size in zip(times, sizes, strict=True)],
            EXTRA: [sample.extra_bytes / MiB for sample in samples],
        })  # fmt: skip
