"""``dcp.save`` of mixed fp32 and bf16 tensors, to one object and to eight."""

from __future__ import annotations

from bench import transfer
from bench.contenders import BARE, OURS, PEER
from bench.options import Settings, benchmark
from bench.report import Bar, Report
from bench.storage import open_storage
from bench.transfer import CPU, EXTRA, GB_S, label

OBJECTS = (1, 8)


@benchmark()
def save(settings: Settings) -> Report:
    """Measure dcp.save of mixed tensors, to one object and to eight."""
    report = Report("dcp.save, mixed tensors", plotted=(GB_S, CPU, EXTRA))
    standing = len(settings.contenders) * len(OBJECTS)
    with open_storage(settings.place, reserve_bytes=(standing + 2) * settings.nbytes) as storage:
        results = transfer.save_rounds(storage, settings.nbytes, settings.contenders, OBJECTS, settings.rounds)
    transfer.add_rows(report, results)
    for objects in OBJECTS:
        variant = label(objects)
        ours, peer, bare = (OURS, variant), (PEER, variant), (BARE, "")
        report.bars += [
            Bar.at_least(f"save, {variant}: GB/s beside the bare loop", 0.8, report.ratio(ours, bare, GB_S)),
            Bar.at_least(f"save, {variant}: GB/s beside {PEER}", 3, report.ratio(ours, peer, GB_S)),
            Bar.at_most(f"save, {variant}: CPU beside {PEER}", 1 / 4, report.ratio(ours, peer, CPU)),
            Bar.at_most(f"save, {variant}: extra memory, MiB", 64, report.median(OURS, variant, EXTRA)),
        ]
    return report
