"""The first call of a process beside the next one: what a fresh process pays beyond its imports."""

from __future__ import annotations

from bench.contenders import OURS, installed
from bench.measure import Sample
from bench.options import Settings, benchmark
from bench.report import Bar, Report
from bench.storage import open_storage
from bench.transfer import LoadTrial, SaveTrial, write_checkpoints
from bench.worker import Worker

FIRST, NEXT, FIXED = "first call, s", "next call, s", "fixed cost, s"


@benchmark(size_gb=0.1, rounds=3)
def first(settings: Settings) -> Report:
    """Measure the first call of a fresh process beside the next one."""
    report = Report("first call in a fresh process, imports aside", plotted=(FIXED,))
    found: dict[tuple[str, str], list[tuple[Sample, Sample]]] = {}
    with open_storage(settings.place, reserve_bytes=(len(settings.contenders) + 2) * settings.nbytes) as storage:
        urls = write_checkpoints(storage, settings.nbytes, [1])
        for _ in range(settings.rounds):
            for name, contender in installed(settings.contenders).items():
                for what, trial, url in (
                    ("load", LoadTrial(contender, settings.nbytes), urls[1]),
                    ("save", SaveTrial(contender, settings.nbytes), storage.url(f"first-{name}")),
                ):
                    with Worker(trial, storage.environ) as worker:
                        worker.ready()
                        calls = [worker.measure(url) for _ in range(3)]
                    found.setdefault((name, what), []).append((calls[0], min(calls[1:], key=lambda one: one.seconds)))
    for (name, what), pairs in found.items():
        report.add(name, what, {
            FIRST: [cold.seconds for cold, _ in pairs],
            NEXT: [warm.seconds for _, warm in pairs],
            FIXED: [cold.seconds - warm.seconds for cold, warm in pairs],
        })  # fmt: skip
    report.bars += [
        Bar.at_most(f"{what}: fixed cost of the first call, s", 0.3, report.median(OURS, what, FIXED))
        for what in ("load", "save")
    ]
    return report
