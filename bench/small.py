"""Many small tensors: the time that a storage adds to what DCP itself takes.

Each count has processes of its own, as a training has one state dict: Python walks a heap that has held others more
slowly, in DCP's code as well as in ours. All counts take turns, as they are compared, too.

Whether the cost of a tensor is flat is measured with Python's collector off, as ``timeit`` does. Its full passes walk
everything in the process, come once the heap has grown by a quarter, and at 50,000 tensors take up to half a second
each: one more or less of them, wherever it happens to fall, is as much as the storage takes. The rows with the
collector on are there, too, and the bars beside the peer are of them. Ours puts full passes off while DCP plans, the
null storage does not: what it adds there may be less than nothing, and what it takes itself is what the rows without
the collector say.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import click
import torch.distributed.checkpoint as dcp

from bench import workload
from bench.contenders import NULL, OURS, PEER, Contender, installed
from bench.measure import Sample, Trial
from bench.options import Settings, benchmark
from bench.report import Bar, Report
from bench.storage import Storage, open_storage
from bench.transfer import Observed, WrongBytes, label
from bench.worker import take_turns, workers

ADDED, ADDED_CPU, EACH = "added by the storage, s", "added CPU, s", "added CPU per tensor, µs"

#: The count that the peers are compared at; at others they would take minutes, and tell nothing more.
COMPARED = 20_000


@dataclass(frozen=True, slots=True)
class Case:
    """Save or load ``count`` tensors of 4 KiB, in ``objects`` objects, with Python's collector or without."""

    what: str
    count: int
    objects: int
    collector: bool = True

    def __str__(self) -> str:
        return f"{self.what} {self.count}, {label(self.objects)}{'' if self.collector else ', no collector'}"


@dataclass
class SmallTrial(Trial):
    """Runs cases of one count; the arguments are the case and the URL."""

    contender: Contender
    count: int

    def prepare(self) -> None:  # noqa: D102
        self.contender.import_modules()
        self._state = workload.small(self.count)
        self._crcs = workload.crcs(self._state)
        self.payload_bytes = workload.size(self._state)

    def before(self, case: Case, url: str) -> None:  # noqa: D102
        if case.what == "save":
            writer = self.contender.writer(url, case.objects)
            self._work: Callable[[], object] = partial(dcp.save, self._state, storage_writer=writer, no_dist=True)
        else:
            reader = self.contender.reader(url)
            self._work = partial(dcp.load, self._state, storage_reader=reader, no_dist=True)
            workload.wipe(self._state)

    def run(self, case: Case, url: str) -> None:  # noqa: ARG002, D102
        if not case.collector:
            gc.disable()
        self._work()

    def after(self, case: Case, url: str) -> None:  # noqa: D102
        gc.enable()
        if self.contender.moves_bytes and workload.crcs(self._state) != self._crcs:
            raise WrongBytes(f"{case}: {url}")


def _numbers(_: click.Context, __: click.Parameter, text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


@click.option("--counts", default="2000,20000,50000", show_default=True, callback=_numbers, help="How many tensors.")
@click.option(
    "--objects", default="1,8", show_default=True, callback=_numbers, help="In how many objects, beside the peers."
)
@benchmark(rounds=3, contenders=(OURS, PEER))  # Fsspec fetches 50 MB anew for most tensors: half an hour
def small(settings: Settings, *, counts: list[int], objects: list[int]) -> Report:
    """Measure what a storage adds to DCP's own time for many tensors of 4 KiB."""
    report = Report("tensors of 4 KiB", plotted=(ADDED, EACH))
    compared = min(counts, key=lambda count: abs(count - COMPARED))
    cases = [
        Case(what, count, split)
        for what in ("save", "load")
        for count in counts
        for split in (objects if count == compared else objects[:1])
    ]
    flat = [Case(what, count, objects[0], collector=False) for what in ("save", "load") for count in counts]
    peers = {count: settings.contenders if count == compared else () for count in counts}
    names = {count: list(dict.fromkeys([OURS, NULL, *peers[count]])) for count in counts}
    with open_storage(settings.place, reserve_bytes=5 * sum(counts) * workload.SMALL_BYTES) as storage:
        results = _rounds(names, cases, storage, settings.rounds) | _rounds(names, flat, storage, settings.rounds)
    for case in cases + flat:
        _add_rows(report, case, results)
        if case.count == compared and case.collector:
            _add_bars(report, case)
    for what in ("save", "load"):
        each = {case.count: report.median(OURS, str(case), EACH) or 0.0 for case in flat if case.what == what}
        for fewer in sorted({counts[0], compared} - {counts[-1]}):
            name = f"{what}, no collector: {EACH}, {counts[-1]} beside {fewer}"
            report.bars.append(Bar.at_most(name, 1.2, each[counts[-1]] / each[fewer]))
    return report


def _rounds(
    names: Mapping[int, Sequence[str]], cases: Sequence[Case], storage: Storage, rounds: int
) -> dict[tuple[str, Case], list[Observed]]:
    """Rounds of cases, ``names`` by their count; each contender saves over its own checkpoints, as a training does."""
    trials = {
        (name, count): SmallTrial(contender, count)
        for count, its_names in names.items()
        for name, contender in installed(its_names).items()
    }
    with workers(trials, storage.environ) as started:

        def url(case: Case, whose: str = "") -> str:
            return storage.url(f"{case.count}-{case.objects}{whose}")

        def measure(name: str, case: Case) -> Sample:
            return started[name, case.count].measure(case, url(case, f"-{name}" if case.what == "save" else ""))

        for case in cases:
            if case.what == "load":
                started[OURS, case.count].measure(Case("save", case.count, case.objects), url(case))
        works = {
            (name, case): partial(storage.observe, partial(measure, name, case))
            for case in cases
            for name, count in started
            if count == case.count
        }
        return take_turns(works, rounds=rounds)


def _add_rows(report: Report, case: Case, results: Mapping[tuple[str, Case], Sequence[Observed]]) -> None:
    """A round's addition is what the round took above the null storage in the same round."""
    alone = [sample for sample, _ in results[NULL, case]]
    report.add(NULL, str(case), {"seconds": [sample.seconds for sample in alone]})
    for (name, its_case), observed in results.items():
        if its_case != case or name == NULL:
            continue
        samples = [sample for sample, _ in observed]
        cpu_s = [here.cpu_s - there.cpu_s for here, there in zip(samples, alone, strict=True)]
        report.add(name, str(case), {
            "seconds": [sample.seconds for sample in samples],
            ADDED: [here.seconds - there.seconds for here, there in zip(samples, alone, strict=True)],
            ADDED_CPU: cpu_s,
            EACH: [one / case.count * 1e6 for one in cpu_s],
            "requests": [seen.requests for _, seen in observed if seen],
        })  # fmt: skip


def _add_bars(report: Report, case: Case) -> None:
    for column in (ADDED, ADDED_CPU):
        measured = report.ratio((OURS, str(case)), (PEER, str(case)), column)
        report.bars.append(Bar.at_most(f"{case}: {column}, beside {PEER}", 1 / 8, measured))
