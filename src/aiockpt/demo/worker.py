"""A worker process, ``python -m aiockpt.demo.worker FOLDER``, alone or as a rank of torchrun: does the folder's job.

Ranks find each other over a file and talk over gloo; each leaves a report of its own.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from aiockpt.demo.fingerprint import fingerprints
from aiockpt.demo.job import FAILURE_SUFFIX, Job, Report
from aiockpt.demo.storage import load, save
from aiockpt.demo.training import Training


def main(folder: Path) -> None:
    """Do the job that lies in `folder`, and leave there the report, or the traceback of what went wrong."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # a process alone is what is meant
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    job, rank = Job.read(folder), int(os.environ.get("RANK", "0"))
    try:
        with _world(folder / "meeting", rank) as mesh:
            shards = range(job.recipe.shards) if mesh is None else [rank]
            report = work(job, Training(job.recipe, seed=job.seed, shards=shards, mesh=mesh))
    except Exception:
        (folder / f"rank{rank}{FAILURE_SUFFIX}").write_text(traceback.format_exc())  # torchrun buries it in its own
        raise
    report.write(folder, rank)


@contextmanager
def _world(meeting: Path, rank: int) -> Iterator[DeviceMesh | None]:
    """The mesh of torchrun's ranks; None for a process alone."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1:
        yield None
        return
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    try:
        yield init_device_mesh("cpu", (ranks,))
    finally:
        distributed.destroy_process_group()


def work(job: Job, training: Training) -> Report:
    """Load, train and save as the job says."""
    transfer = None
    began: dict[str, str] = {}
    if job.load:
        transfer = load(training, job.place)
        if job.tamper is not None:
            flip_a_bit(training, job.tamper)
        began = fingerprints(training.whole_state())
    losses = train(training, job.until)
    if job.save:
        transfer = save(training, job.place)
    return Report(losses, began, fingerprints(training.whole_state()), transfer)


def train(training: Training, until: int) -> dict[str, str]:
    """Train to step `until`; returns the losses as a report has them."""
    losses = {}
    while training.step < until:
        for shard, loss in training.advance().items():
            losses[f"step {training.step}, shard {shard}"] = loss.hex()
    return losses


def flip_a_bit(training: Training, name: str) -> None:
    """Flip the lowest bit of the first element of (this rank's part of) a parameter."""
    parameter = training.model.get_parameter(name)
    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    local.detach().view(torch.int32).view(-1)[0] ^= 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    if distributed.is_torchelastic_launched():
        # Gloo's threads outlive their process group, and abort the process if one of them lets go of a tensor while the
        # interpreter winds up (pytorch issue 190489; seen in 1 of 30 ranks here). All is done and written: just end.
        os._exit(0)
