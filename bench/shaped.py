"""Load and save over a link like S3's: latency before the first byte, bandwidth of a connection, a cap for all."""

from __future__ import annotations

import click

from aiockpt.model import MiB
from aiockpt.testing import Shape
from bench import transfer
from bench.bare import BareLoad, BareSave
from bench.contenders import OURS, PEER
from bench.options import Settings, benchmark
from bench.report import Bar, Report
from bench.storage import open_storage
from bench.transfer import GB_S

#: Of the bare loop: small enough that no connection ends much later than the others.
REQUEST_BYTES = 5 * MiB

#: Enough connections to fill the cap one and a half times.
HEADROOM = 1.5

#: Answers that any client waits for, one after the other, beside the bytes: the metadata's and the first bytes'; an
#: upload's id, the last part's, the completion's and the metadata's.
TURNS = {"load": 2, "save": 4, "save, replacing": 4}


@click.option("--latency-s", default=0.02, show_default=True, help="From a request to the first byte of its answer.")
@click.option("--connection-mb-s", default=90.0, show_default=True, help="Bandwidth of a connection.")
@click.option("--total-gb-s", default=1.5, show_default=True, help="Bandwidth of all connections.")
@benchmark(contenders=(OURS, PEER))
def shaped(settings: Settings, *, latency_s: float, connection_mb_s: float, total_gb_s: float) -> Report:
    """Measure load and save over a link like S3's (local endpoint only)."""
    shape = Shape(latency_s, connection_mb_s * 1e6, total_gb_s * 1e9)
    report = Report(
        f"{latency_s * 1e3:.0f} ms first byte, {connection_mb_s:.0f} MB/s a connection, {total_gb_s} GB/s in all",
        plotted=(GB_S,),
    )
    connections = round(HEADROOM * total_gb_s * 1e3 / connection_mb_s)
    with open_storage(settings.place, reserve_bytes=6 * settings.nbytes, shape=shape) as storage:
        shared = (storage, settings.nbytes, settings.contenders, (1,), settings.rounds)
        loads = transfer.load_rounds(*shared, bare=BareLoad(connections, REQUEST_BYTES))
        bare = BareSave(settings.nbytes, connections, REQUEST_BYTES)
        saves = transfer.save_rounds(*shared, bare=bare, anew=True)
        replacing = transfer.save_rounds(*shared, bare=bare)
    gigabytes = settings.nbytes / 1e9
    for what, results in zip(TURNS, (loads, saves, replacing), strict=True):
        transfer.add_rows(report, {(name, what): observed for (name, _), observed in results.items()})
        allowed_s = gigabytes / total_gb_s + TURNS[what] * latency_s
        reached = report.median(OURS, what, GB_S)
        share = reached and reached * allowed_s / gigabytes
        report.bars.append(Bar.at_least(f"{what}: share of what the link allows", 0.9, share))
        report.remarks.append(
            f"{what}: the link passes {gigabytes:.2f} GB in {gigabytes / total_gb_s:.3f} s, and {TURNS[what]} answers "
            f"that can only come one after the other take {TURNS[what] * latency_s:.3f} s: together, what it allows."
            + (f" {OURS} has {reached / total_gb_s:.3f} of the bandwidth alone." if reached else "")
        )
    report.remarks.append(
        f"The bare loop has {connections} connections; its uploads are begun, and its URLs signed, beforehand, and "
        "nothing is committed. A save is to a new path each time; one that replaces a checkpoint deletes that in the "
        "end."
    )
    return report
