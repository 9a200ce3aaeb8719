"""Load and save over a link like S3's: latency before the first byte, bandwidth of a connection, a cap for all."""

from __future__ import annotations

import click

from aiockpt.model import MiB
from aiockpt.testing import Shape
from bench import transfer
from bench.bare import BareLoad, BareSave
from bench.contenders import BARE, OURS, PEER
from bench.options import Settings, benchmark
from bench.report import Bar, Report
from bench.storage import open_storage
from bench.transfer import GB_S

#: Of the bare loop: small enough that no connection ends much later than the others.
REQUEST_BYTES = 5 * MiB

#: Enough connections to fill the cap one and a half times.
HEADROOM = 1.5


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
    variants = {"load": loads, "save": saves, "save, replacing": replacing}
    for what, results in variants.items():
        transfer.add_rows(report, {(name, what): observed for (name, _), observed in results.items()})
    for what in variants:
        reached = report.median(OURS, what, GB_S)
        report.bars += [
            Bar.at_least(f"{what}: share of the link's bandwidth", 0.9, reached and reached / total_gb_s),
            Bar.at_least(f"{what}: GB/s beside the bare loop", 0.9, report.ratio((OURS, what), (BARE, what), GB_S)),
        ]
    gigabytes = settings.nbytes / 1e9
    report.remarks.append(
        f"The link passes {gigabytes:.1f} GB in {gigabytes / total_gb_s:.2f} s; a request that must wait for another "
        f"one's answer adds {latency_s * 1e3:.0f} ms. The bare loop has {connections} connections; its uploads are "
        "begun, and its URLs signed, beforehand. A save is to a new path each time; one that replaces a checkpoint "
        "deletes that in the end."
    )
    return report
