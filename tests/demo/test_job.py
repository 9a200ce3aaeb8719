from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from aiockpt.demo.job import Job, Place, Recipe, Report, Transfer

REPORT = Report({"step 1, shard 0": "0x1p0"}, {}, {"step": "1"}, Transfer(0.5, 2, 1000))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layers": 0}, "layers must be at least 1"),
        ({"steps": 6, "save_at": 6}, r"save_at \(6\) must leave steps"),
        ({"dim": 96, "heads": 5}, "multiple of heads"),
        ({"dim": 96, "heads": 3, "shards": 2}, "multiple of heads .3. and of 64"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**wrong)


@pytest.mark.parametrize(("shards", "expected"), [(1, True), (2, True), (3, False)])
def test_a_sum_of_up_to_two_has_no_order(shards: int, expected: bool) -> None:
    assert Recipe(dim=384, heads=4, shards=shards).is_order_free is expected


def test_a_job_travels_as_a_file(tmp_path: Path, recipe: Recipe) -> None:
    job = Job(recipe, Place("s3://bucket/a", "us-east-1", "http://x"), seed=1, until=2, save=True, tamper="head.weight")
    job.write(tmp_path)
    assert Job.read(tmp_path) == job


@pytest.mark.parametrize("report", [REPORT, replace(REPORT, transfer=None)])
def test_a_report_travels_as_a_file(tmp_path: Path, report: Report) -> None:
    report.write(tmp_path, 0)
    assert Report.read(tmp_path, 1) == report


def test_ranks_make_one_report(tmp_path: Path) -> None:
    REPORT.write(tmp_path, 0)
    replace(REPORT, losses={"step 1, shard 1": "0x1p1"}, transfer=Transfer(9.0, 0, 0)).write(tmp_path, 1)
    merged = Report.read(tmp_path, 2)
    assert merged == replace(REPORT, losses={"step 1, shard 0": "0x1p0", "step 1, shard 1": "0x1p1"})


def test_ranks_that_disagree_equal_nothing(tmp_path: Path) -> None:
    REPORT.write(tmp_path, 0)
    replace(REPORT, ended={"step": "2"}).write(tmp_path, 1)
    assert Report.read(tmp_path, 2).ended == {"step": "1 on one rank, on another 2"}


def test_a_rank_without_a_report_is_noticed(tmp_path: Path) -> None:
    REPORT.write(tmp_path, 0)
    with pytest.raises(FileNotFoundError):
        Report.read(tmp_path, 2)
