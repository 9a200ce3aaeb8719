"""Many small tensors: the time that a storage adds to what DCP itself takes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import click
import torch.distributed.checkpoint as dcp

from bench import workload
from bench.contenders import CONTENDERS, NULL, OURS, PEER, Contender, installed
from bench.measure import Trial
from bench.options import Settings, benchmark
from bench.report import Bar, Report
from bench.storage import Storage, open_storage
from bench.transfer import Observed, WrongBytes
from bench.worker import take_turns, workers

ALL, ADDED, EACH = "seconds", "added by the storage, s", "added per tensor, µs"

#: The count that the peer is compared at.
COMPARED = 20_000


@dataclass
class SmallTrial(Trial):
    """Save or load ``count`` tensors of 4 KiB: the arguments are what, the URL, and the count."""

    contender: Contender

    def prepare(self) -> None:  # noqa: D102
        self.contender.import_modules()
        self._state: workload.State = {}

    def before(self, what: str, url: str, count: int) -> None:  # noqa: D102
        self._state = workload.small(count)
        self._crcs = workload.crcs(self._state)
        self.payload_bytes = workload.size(self._state)
        self._storage = self.contender.writer(url) if what == "save" else self.contender.reader(url)
        if what == "load":
            workload.wipe(self._state)

    def run(self, what: str, url: str, count: int) -> None:  # noqa: ARG002, D102
        if what == "save":
            dcp.save(self._state, storage_writer=self._storage, no_dist=True)
        else:
            dcp.load(self._state, storage_reader=self._storage, no_dist=True)

    def after(self, what: str, url: str, count: int) -> None:  # noqa: ARG002, D102
        if self.contender.moves_bytes and workload.crcs(self._state) != self._crcs:
            raise WrongBytes(url)


@click.option("--counts", default="2000,20000,50000", show_default=True, help="How many tensors.")
@benchmark(rounds=3, contenders=(OURS, PEER))  # Fsspec fetches 50 MB anew for most tensors: half an hour
def small(settings: Settings, *, counts: str) -> Report:
    """Measure what a storage adds to DCP's own time for many tensors of 4 KiB."""
    report = Report("tensors of 4 KiB", plotted=(ADDED, EACH))
    numbers = [int(count) for count in counts.split(",")]
    with open_storage(settings.place, reserve_bytes=2 * max(numbers) * workload.SMALL_BYTES) as storage:
        for count in numbers:
            _add_rows(report, count, _rounds(settings, storage, count))
    compared = min(numbers, key=lambda count: abs(count - COMPARED))
    for what in ("save", "load"):
        variant = f"{what} {compared}"
        each = [report.median(OURS, f"{what} {count}", EACH) or 0.0 for count in numbers]
        report.bars += [
            Bar.at_most(
                f"{variant} tensors: what ours adds beside {PEER}",
                1 / 8,
                report.ratio((OURS, variant), (PEER, variant), ADDED),
            ),
            Bar.at_most(
                f"{what}: added per tensor, {numbers[-1]} beside {compared}", 1.2, _flatness(numbers, each, compared)
            ),
        ]
    return report


def _rounds(settings: Settings, storage: Storage, count: int) -> dict[tuple[str, str], list[Observed]]:
    names = installed([*settings.contenders, NULL])
    url = {"save": storage.url(f"{count}-saved"), "load": storage.url(f"{count}")}
    with workers({OURS: SmallTrial(CONTENDERS[OURS])}, storage.environ) as started:
        started[OURS].measure("save", url["load"], count)
    with workers({name: SmallTrial(one) for name, one in names.items()}, storage.environ) as started:
        works = {
            (name, what): partial(storage.observe, partial(worker.measure, what, url[what], count))
            for what in ("save", "load")
            for name, worker in started.items()
        }
        return take_turns(works, rounds=settings.rounds)


def _add_rows(report: Report, count: int, results: dict[tuple[str, str], list[Observed]]) -> None:
    """A round's addition is what the round took above the null storage in the same round."""
    for (name, what), observed in results.items():
        alone = [sample.seconds for sample, _ in results[NULL, what]]
        seconds = [sample.seconds for sample, _ in observed]
        added = [] if name == NULL else [here - there for here, there in zip(seconds, alone, strict=True)]
        report.add(name, f"{what} {count}", {
            ALL: seconds,
            ADDED: added,
            EACH: [one / count * 1e6 for one in added],
            "requests": [seen.requests for _, seen in observed if seen],
        })  # fmt: skip


def _flatness(counts: list[int], each: list[float], compared: int) -> float:
    return each[-1] / each[counts.index(compared)]
