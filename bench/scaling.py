"""Memory and speed from small checkpoints to large ones; every size in a fresh process, on a server of its own."""

from __future__ import annotations

import click

from bench.contenders import OURS, PEER, installed
from bench.options import Settings, benchmark
from bench.report import Bar, Report
from bench.storage import open_storage
from bench.transfer import EXTRA, LoadTrial, SaveTrial, add_rows
from bench.worker import Worker


@click.option("--sizes-gb", default="0.2,0.5,1,2,4", show_default=True, help="Sizes of the state dict.")
@benchmark(rounds=2, contenders=(OURS, PEER))
def scaling(settings: Settings, *, sizes_gb: str) -> Report:
    """Measure the memory that load and save take above the state dict, from small checkpoints to large ones."""
    report = Report("size of the state dict", plotted=(EXTRA,))
    sizes = [float(size) for size in sizes_gb.split(",")]
    for size_gb in sizes:
        nbytes = int(size_gb * 1e9)
        for name, contender in installed(settings.contenders).items():
            with open_storage(settings.place, reserve_bytes=2 * nbytes) as storage:
                url = storage.url("sized")
                for what, trial in (("save", SaveTrial(contender, nbytes)), ("load", LoadTrial(contender, nbytes))):
                    with Worker(trial, storage.environ) as worker:
                        worker.ready()
                        observed = [storage.observe(lambda: worker.measure(url)) for _ in range(settings.rounds)]  # noqa: B023  # called at once
                    add_rows(report, {(name, f"{what} {size_gb:g} GB"): observed})
    for what in ("save", "load"):
        extras = [report.worst(OURS, f"{what} {size:g} GB", EXTRA) for size in sizes]
        report.bars.append(Bar.at_most(f"{what}: most extra memory at any size, MiB", 64, max(extras)))
        report.bars.append(
            Bar.at_most(
                f"{what}: extra memory of the largest above that of the smallest, MiB", 16, extras[-1] - extras[0]
            )
        )
    return report
