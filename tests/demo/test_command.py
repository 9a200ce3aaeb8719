from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from aiockpt.demo import command, experiment
from aiockpt.demo.job import Job, Report, Transfer
from aiockpt.demo.launch import WorkerFailed
from aiockpt.errors import ConnectError
from aiockpt.testing import LocalEndpoint

SMALL = ["--steps=4", "--save-at=2", "--layers=1", "--dim=64", "--heads=2", "--context=16", "--batch=2"]


def demo(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(command.demo, [*SMALL, *arguments])


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that workers are given; they are not done."""
    given: list[Job] = []

    def run_job(job: Job, ranks: int, folder: Path, environment: Mapping[str, str], timeout_s: float) -> Report:
        given.append(job)
        began = {"w": "0"} if job.load else {}
        return Report({"step 1": "a"}, began, {"w": "0"}, Transfer(1.0, 2, 3) if job.load or job.save else None)

    monkeypatch.setattr(experiment, "run_job", run_job)
    return given


def test_a_run_that_resumes_bit_by_bit() -> None:
    result = demo("--skip-distributed")
    assert result.exit_code == 0, result.output
    assert result.output.count("identical") == 3
    assert "All the same, to the last bit." in result.output


def test_a_tampered_weight_is_named() -> None:
    result = demo("--skip-distributed", "--tamper", "norm.weight")
    assert result.exit_code == 1, result.output
    assert "differ: model.norm.weight" in result.output
    assert "NOT the same" in result.output


def test_one_process_then_several(jobs: list[Job]) -> None:
    result = demo()
    assert result.exit_code == 0, result.output
    assert [job.recipe.shards for job in jobs] == [1, 1, 1, 2, 2, 2, 2]
    assert all(job.place.uri.startswith("s3://demo/aiockpt-demo/") for job in jobs)
    assert result.output.count("identical") == 9


def test_a_real_bucket(jobs: list[Job]) -> None:
    result = demo(
        "--bucket", "mine", "--endpoint-url", "https://s3.example", "--region", "eu-west-1", "--prefix", "/a/"
    )
    assert result.exit_code == 0, result.output
    place = jobs[0].place
    assert place.uri.startswith("s3://mine/a/")
    assert (place.region, place.endpoint_url) == ("eu-west-1", "https://s3.example")
    assert "The checkpoints stay below s3://mine/a/" in result.output


def test_each_run_has_a_place_of_its_own(jobs: list[Job]) -> None:
    demo("--bucket", "mine", "--skip-distributed")
    demo("--bucket", "mine", "--skip-distributed")
    assert len({job.place.uri for job in jobs}) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--endpoint-url", "http://x"], "--endpoint-url needs --bucket"),
        (["--ranks", "1"], "--ranks must be at least 2"),
        (["--save-at", "4"], "save_at (4) must leave steps to resume for, of 4"),
        (["--dim", "32"], "dim (32) must be a multiple"),
        (["--layers", "many"], "'many' is not a valid integer"),
    ],
)
def test_usage(arguments: list[str], message: str) -> None:
    result = demo(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_a_worker_that_fails_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_job(*_: object) -> Report:
        raise WorkerFailed("a worker failed with exit status 1\n    AccessDenied: no")

    monkeypatch.setattr(experiment, "run_job", run_job)
    result = demo("--skip-distributed")
    assert result.exit_code == 1
    assert "Error: a worker failed with exit status 1\n    AccessDenied: no" in result.output


def test_an_endpoint_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: LocalEndpoint) -> LocalEndpoint:
        raise ConnectError("the local endpoint did not start")

    monkeypatch.setattr(LocalEndpoint, "start", start)
    result = demo()
    assert (result.exit_code, result.output) == (1, "Error: the local endpoint did not start\n")
