"""The experiment: a run that was saved, and resumed by new processes, against the same run uninterrupted.

Every training is done by new processes. Those who resume begin with other seeds than those who saved, so that nothing
is the same by luck: weights, moments, dropout and data all have to come out of the checkpoint.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aiockpt.demo.job import Job, Place, Recipe, Report, Transfer
from aiockpt.demo.launch import run_job
from aiockpt.demo.verdict import Check, check

SEED = 1
SEED_OF_RESUMED = 1000


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an experiment needs around it.

    Attributes:
        checkpoints: URI below which checkpoints are written.
        region, endpoint_url: of the store; None: AWS's.
        environment: variables for the workers, on top of this process's own.
        count_requests: how many requests the store has seen; None: it cannot be asked.
        announce: is told what is being done.
        timeout_s: longest time for one training.
    """

    checkpoints: str
    region: str
    endpoint_url: str | None
    environment: Mapping[str, str]
    count_requests: Callable[[], int] | None
    announce: Callable[[str], None]
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Move:
    """One save or load, and how many requests it took (None: not known)."""

    title: str
    transfer: Transfer
    requests: int | None


class Experiment:
    """A run with one process for each of the recipe's shards.

    Attributes:
        moves: the saves and loads so far.
        checks: the comparisons so far.
    """

    def __init__(self, around: Surroundings, recipe: Recipe, tamper: str | None = None) -> None:
        self._around = around
        self._recipe = recipe
        self._tamper = tamper
        self.moves: list[Move] = []
        self.checks: list[Check] = []

    def run(self, resumed_by: Sequence[int]) -> None:
        """Train without interruption, train and save, then resume by each of these counts of processes.

        Raises:
            WorkerFailed: a process failed, or took too long.
        """
        recipe, around = self._recipe, self._around
        uri = f"{around.checkpoints}/saved-by-{recipe.shards}"
        job = Job(recipe, Place(uri, around.region, around.endpoint_url), SEED, until=recipe.steps)
        whole = self._do(job, recipe.shards)
        first = self._do(replace(job, until=recipe.save_at, save=True), recipe.shards)
        for processes in resumed_by:
            resuming = replace(job, load=True, seed=SEED_OF_RESUMED, tamper=self._tamper)
            rest = self._do(resuming, processes)
            self.checks += comparisons(recipe, processes, whole, first, rest)

    def _do(self, job: Job, processes: int) -> Report:
        self._around.announce(f"{plural(processes)}: {describe(job)}")
        before = self._requests()
        with tempfile.TemporaryDirectory(prefix="aiockpt-demo-") as folder:
            report = run_job(job, processes, Path(folder), self._around.environment, self._around.timeout_s)
        if report.transfer is not None:
            requests = None if before is None else (self._requests() or 0) - before
            self.moves.append(Move(f"{'load' if job.load else 'save'}, {plural(processes)}", report.transfer, requests))
        return report

    def _requests(self) -> int | None:
        count = self._around.count_requests
        return None if count is None else count()


def comparisons(recipe: Recipe, processes: int, whole: Report, first: Report, rest: Report) -> list[Check]:
    """What must be the same, bit by bit.

    Args:
        processes: how many resumed; as many as saved, or one.
        whole, first, rest: reports of the uninterrupted run, of who saved, and of who resumed.
    """
    who = f"saved by {recipe.shards}, resumed by {processes}"
    checks = [check(f"{who}: state as loaded", first.ended, rest.began)]
    if processes == recipe.shards or recipe.is_order_free:
        checks.append(check(f"{who}: every loss", whole.losses, first.losses | rest.losses))
        checks.append(check(f"{who}: final state", whole.ended, rest.ended))
    return checks


def describe(job: Job) -> str:
    """What the processes that are given the job do."""
    begin = f"load, train on to step {job.until}" if job.load else f"train to step {job.until}"
    return begin + (", save" if job.save else "")


def plural(processes: int) -> str:
    """The count, with its noun."""
    return f"{processes} process" + ("es" if processes > 1 else "")
