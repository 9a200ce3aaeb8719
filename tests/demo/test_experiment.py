from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from aiockpt.demo import experiment
from aiockpt.demo.experiment import Experiment, Surroundings, comparisons
from aiockpt.demo.job import Job, Place, Recipe, Report, Transfer
from aiockpt.testing import LocalEndpoint

SAVED, LOADED = Transfer(0.5, 2, 1000), Transfer(0.25, 2, 1000)
WHOLE = Report({"step 1, shard 0": "a", "step 2, shard 0": "b"}, {}, {"w": "2"}, None)
FIRST = Report({"step 1, shard 0": "a"}, {}, {"w": "1"}, SAVED)
REST = Report({"step 2, shard 0": "b"}, {"w": "1"}, {"w": "2"}, LOADED)


class Workers:
    """Do as they are told, at once; the store sees a request more each time that it is asked."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Job, int]] = []
        self.announced: list[str] = []
        self.asked = 0

    def run_job(self, job: Job, ranks: int, folder: Path, environment: Mapping[str, str], timeout_s: float) -> Report:
        assert (list(folder.iterdir()), environment, timeout_s) == ([], {"A": "B"}, 9.0)
        self.jobs.append((job, ranks))
        return REST if job.load else FIRST if job.save else WHOLE

    def count_requests(self) -> int:
        self.asked += 1
        return self.asked

    def surroundings(self) -> Surroundings:
        return Surroundings("s3://b/c", "eu", None, {"A": "B"}, self.count_requests, self.announced.append, 9.0)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    workers = Workers()
    monkeypatch.setattr(experiment, "run_job", workers.run_job)
    return workers


def test_who_does_what(workers: Workers) -> None:
    trial = Experiment(workers.surroundings(), Recipe(shards=2), tamper="w")
    trial.run([2, 1])
    assert workers.announced == [
        "2 processes: train to step 12",
        "2 processes: train to step 6, save",
        "2 processes: load, train on to step 12",
        "1 process: load, train on to step 12",
    ]
    assert [ranks for _, ranks in workers.jobs] == [2, 2, 2, 1]
    whole, first, *rest = (job for job, _ in workers.jobs)
    assert {job.place for job, _ in workers.jobs} == {Place("s3://b/c/saved-by-2", "eu")}
    assert whole.seed == first.seed
    assert all(job.seed != first.seed and job.tamper == "w" for job in rest)
    assert whole.tamper is first.tamper is None


def test_what_is_found(workers: Workers) -> None:
    trial = Experiment(workers.surroundings(), Recipe(shards=2))
    trial.run([2, 1])
    assert [(move.title, move.transfer, move.requests) for move in trial.moves] == [
        ("save, 2 processes", SAVED, 1),
        ("load, 2 processes", LOADED, 1),
        ("load, 1 process", LOADED, 1),
    ]
    assert len(trial.checks) == 6
    assert all(check.passed for check in trial.checks)


def test_a_store_that_cannot_be_asked(workers: Workers) -> None:
    trial = Experiment(replace(workers.surroundings(), count_requests=None), Recipe())
    trial.run([1])
    assert [move.requests for move in trial.moves] == [None, None]


@pytest.mark.parametrize(
    ("rest", "differing"),
    [
        (replace(REST, began={"w": "0"}), {"saved by 1, resumed by 1: state as loaded": ("w",)}),
        (
            replace(REST, losses={"step 2, shard 0": "c"}),
            {"saved by 1, resumed by 1: every loss": ("step 2, shard 0",)},
        ),
        (replace(REST, losses={}), {"saved by 1, resumed by 1: every loss": ("step 2, shard 0",)}),
        (replace(REST, ended={"w": "3"}), {"saved by 1, resumed by 1: final state": ("w",)}),
    ],
)
def test_any_difference_is_found(rest: Report, differing: dict[str, tuple[str, ...]]) -> None:
    checks = comparisons(Recipe(), 1, WHOLE, FIRST, rest)
    assert {check.title: check.differing for check in checks if not check.passed} == differing


@pytest.mark.parametrize(("shards", "processes", "count"), [(2, 1, 3), (4, 4, 3), (4, 1, 1)])
def test_only_what_must_be_the_same_is_compared(shards: int, processes: int, count: int) -> None:
    assert len(comparisons(Recipe(shards=shards), processes, WHOLE, FIRST, REST)) == count


def test_two_ranks_resumed_by_two_and_by_one(recipe: Recipe, local_endpoint: LocalEndpoint, local_bucket: str) -> None:
    around = Surroundings(
        f"s3://{local_bucket}/runs",
        local_endpoint.region,
        local_endpoint.url,
        local_endpoint.environ(),
        lambda: local_endpoint.stats().requests_total,
        lambda _: None,
        100.0,
    )
    trial = Experiment(around, replace(recipe, shards=2))
    trial.run([2, 1])
    assert [check.verdict for check in trial.checks] == ["identical"] * 6
    assert [move.transfer.objects for move in trial.moves] == [3, 3, 3]
