"""Training while ``dcp.async_save`` runs in a thread or a process beside it: the time that the save steals from it."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import click
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

from bench import workload
from bench.contenders import NULL, OURS, PEER, Contender, installed
from bench.measure import Trial
from bench.options import Settings, benchmark
from bench.report import Bar, Report
from bench.storage import open_storage
from bench.worker import take_turns, workers

STOLEN, SLOWER, SAVING, STAGING = "stolen, s/GB", "steps slower, times", "save took, s", "staging, s"
TAKEN = "stolen and staging, s/GB"

#: Steps without a save, before each save, whose median is what a step takes.
QUIET_STEPS = 100


@dataclass(frozen=True, slots=True)
class Training:
    """What trains: linear layers of ``width`` with GELUs between them, on batches, on some of torch's threads."""

    width: int
    depth: int
    batch: int
    threads: int


@dataclass
class TrainingTrial(Trial):
    """Steps of a small model, while the mixed tensors are saved; the argument is the URL."""

    contender: Contender
    nbytes: int
    training: Training
    beside: AsyncCheckpointerType

    def prepare(self) -> None:  # noqa: D102
        if self.beside is AsyncCheckpointerType.PROCESS:  # DCP's processes are of the group of the trainers
            os.environ["MASTER_ADDR"] = "127.0.0.1"
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        torch.set_num_threads(self.training.threads)
        self.contender.import_modules()
        self._state = workload.mixed(self.nbytes)
        self.payload_bytes = workload.size(self._state)
        width = self.training.width
        layers = [
            module for _ in range(self.training.depth) for module in (torch.nn.Linear(width, width), torch.nn.GELU())
        ]
        self._model = torch.nn.Sequential(*layers)
        self._optimizer = torch.optim.AdamW(self._model.parameters())
        self._batch = torch.rand(self.training.batch, width)

    def _step(self) -> float:
        """One training step; returns its seconds."""
        start_s = time.perf_counter()
        self._optimizer.zero_grad()
        self._model(self._batch).square().mean().backward()
        self._optimizer.step()
        return time.perf_counter() - start_s

    def run(self, url: str) -> Mapping[str, float]:  # noqa: D102
        quiet_s = statistics.median(self._step() for _ in range(QUIET_STEPS))
        start_s = time.perf_counter()
        saving = dcp.async_save(
            self._state,
            storage_writer=self.contender.writer(url),
            async_checkpointer_type=self.beside,
            no_dist=self.beside is AsyncCheckpointerType.THREAD,
        )
        staged_s = time.perf_counter()
        steps: list[float] = []
        while not saving.done():  # type: ignore[union-attr]  # a future, unless a stager of one's own is given
            steps.append(self._step())
        saved_s = time.perf_counter()
        saving.result()  # type: ignore[union-attr]  # likewise
        gigabytes = self.payload_bytes / 1e9
        stolen_s, staging_s = sum(steps) - len(steps) * quiet_s, staged_s - start_s
        return {
            STOLEN: stolen_s / gigabytes,
            SLOWER: statistics.mean(steps) / quiet_s if steps else 1.0,
            SAVING: saved_s - staged_s,
            STAGING: staging_s,
            TAKEN: (stolen_s + staging_s) / gigabytes,
        }


@click.option("--width", default=256, show_default=True, help="Of the model that trains: small operations or large.")
@click.option("--depth", default=8, show_default=True, help="Its layers.")
@click.option("--batch", default=64, show_default=True, help="Its samples a step.")
@click.option("--threads", default=1, show_default=True, help="Its share of the cores; the save has the others.")
@click.option(
    "--checkpointer",
    type=click.Choice([kind.value for kind in AsyncCheckpointerType]),
    default=AsyncCheckpointerType.THREAD.value,
    show_default=True,
    help="What async_save saves in.",
)
@benchmark(contenders=(OURS, PEER))
def interference(settings: Settings, *, width: int, depth: int, batch: int, threads: int, checkpointer: str) -> Report:
    """Measure the training time that async_save in the background steals."""
    training = Training(width, depth, batch, threads)
    report = Report(f"training during dcp.async_save ({checkpointer})", plotted=(STOLEN, SLOWER, SAVING))
    with open_storage(settings.place, reserve_bytes=(len(settings.contenders) + 2) * settings.nbytes) as storage:
        trials = {
            name: TrainingTrial(one, settings.nbytes, training, AsyncCheckpointerType(checkpointer))
            for name, one in installed([*settings.contenders, NULL]).items()
        }
        with workers(trials, storage.environ) as started:
            works = {name: partial(worker.measure, storage.url(f"trained-{name}")) for name, worker in started.items()}
            results = take_turns(works, rounds=settings.rounds)
    for name, samples in results.items():
        report.add(name, "", {column: [one.notes[column] for one in samples] for column in samples[0].notes})
    report.bars.append(
        Bar.at_most(f"training time stolen beside {PEER}", 1 / 6, report.ratio((OURS, ""), (PEER, ""), STOLEN))
    )
    report.remarks.append(
        "Stolen: what the steps during the save took above as many undisturbed ones (their median). The copy that "
        "async_save makes before it returns (staging), while the training waits, is not in it: DCP's own, but for "
        "aiockpt. The server is on the same machine."
    )
    return report
