"""``dcp.load`` of mixed fp32 and bf16 tensors, from one object and from eight."""

from __future__ import annotations

from bench import transfer
from bench.contenders import BARE, OURS, PEER
from bench.options import Settings, benchmark
from bench.report import Bar, Report
from bench.storage import open_storage
from bench.transfer import CPU, EXTRA, GB_S, label

#: GB/s and CPU s/GB beside s3torchconnector's, by the number of objects: one is its default, eight its best.
TIMES_PEER = {1: (5.0, 1 / 8), 8: (3.5, 1 / 5)}


@benchmark()
def load(settings: Settings) -> Report:
    """Measure dcp.load of mixed tensors, from one object and from eight."""
    report = Report("dcp.load, mixed tensors", plotted=(GB_S, CPU, EXTRA))
    with open_storage(settings.place, reserve_bytes=3 * settings.nbytes) as storage:
        results = transfer.load_rounds(
            storage, settings.nbytes, settings.contenders, sorted(TIMES_PEER), settings.rounds
        )
    transfer.add_rows(report, results)
    for objects, (times_speed, times_cpu) in TIMES_PEER.items():
        variant = label(objects)
        ours, peer, bare = (OURS, variant), (PEER, variant), (BARE, variant)
        report.bars += [
            Bar.at_least(f"load, {variant}: GB/s beside the bare loop", 0.8, report.ratio(ours, bare, GB_S)),
            Bar.at_least(f"load, {variant}: GB/s beside {PEER}", times_speed, report.ratio(ours, peer, GB_S)),
            Bar.at_most(f"load, {variant}: CPU beside {PEER}", times_cpu, report.ratio(ours, peer, CPU)),
            Bar.at_most(f"load, {variant}: extra memory, MiB", 64, report.median(OURS, variant, EXTRA)),
        ]
    return report
