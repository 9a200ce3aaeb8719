"""A worker process, ``python -m aiockpt.demo.worker JOB``, or the same under torchrun: does one job, leaves a report.

Under torchrun the processes find each other over a file and talk over gloo; rank 0 leaves the report for all.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from aiockpt.demo.fingerprint import fingerprints
from aiockpt.demo.job import Job, Report
from aiockpt.demo.storage import load, save
from aiockpt.demo.training import Training

if TYPE_CHECKING:
    from collections.abc import Iterator


def main(path: Path) -> None:
    """Do the job that lies at `path`."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    job = Job.read(path)
    with _world(job) as (mesh, shards):
        report = _work(job, Training(job.recipe, seed=job.seed, shards=shards, mesh=mesh))
        if 0 in shards:
            report.write(job.report)


@contextmanager
def _world(job: Job) -> Iterator[tuple[DeviceMesh | None, list[int]]]:
    """The mesh that this process is part of (None: it is alone) and its shards of the data."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1:
        yield None, list(range(job.recipe.shards))
        return
    rank = int(os.environ["RANK"])
    distributed.init_process_group("gloo", init_method=f"file://{job.group}", rank=rank, world_size=ranks)
    try:
        yield init_device_mesh("cpu", (ranks,)), [rank]
    finally:
        distributed.destroy_process_group()


def _work(job: Job, training: Training) -> Report:
    transfer, began = None, {}
    if job.load:
        transfer = load(training, job.place)
        if job.tamper is not None:
            flip_a_bit(training, job.tamper)
        began = _whole_fingerprints(training)
    losses = _train(training, job.until)
    if job.save:
        transfer = save(training, job.place)
    return Report(losses, began, _whole_fingerprints(training), transfer)


def _train(training: Training, until: int) -> dict[str, str]:
    losses = {}
    while training.step < until:
        step = training.step + 1
        losses |= {f"step {step}, shard {shard}": loss.hex() for shard, loss in training.advance().items()}
    return _merged(losses)


def _whole_fingerprints(training: Training) -> dict[str, str]:
    return _merged(fingerprints(training.whole_state()))


def _merged(mine: dict[str, str]) -> dict[str, str]:
    """The entries of all processes."""
    if not distributed.is_initialized():
        return mine
    everyones: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(everyones, mine)
    return {name: value for theirs in everyones for name, value in theirs.items()}


def flip_a_bit(training: Training, name: str) -> None:
    """Flip the lowest bit of the first element of this process's part of a parameter."""
    parameter = training.model.get_parameter(name)
    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    local.detach().view(torch.int32).view(-1)[0] ^= 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
