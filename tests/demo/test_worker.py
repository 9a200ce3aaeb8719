from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aiockpt.demo import worker
from aiockpt.demo.fingerprint import fingerprints
from aiockpt.demo.job import FAILURE_SUFFIX, Job, Place, Recipe, Report, Transfer
from aiockpt.demo.training import Training

TRANSFER = Transfer(1.0, 2, 3)


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is loaded and saved; nothing is moved."""
    done: list[str] = []

    def record(name: str) -> None:
        def move(training: Training, place: Place) -> Transfer:
            done.append(f"{name} {place.uri} at step {training.step}")
            return TRANSFER

        monkeypatch.setattr(worker, name, move)

    record("load")
    record("save")
    return done


def test_train_reports_every_bit_of_each_loss(training: Training, recipe: Recipe) -> None:
    losses = worker.train(training, 3)
    again = Training(recipe, seed=1, shards=[0])
    assert losses == {f"step {step}, shard 0": again.advance()[0].hex() for step in (1, 2, 3)}


def test_nothing_is_moved_unasked(moves: list[str], job: Job, training: Training) -> None:
    report = worker.work(job, training)
    assert (moves, report.transfer, report.began) == ([], None, {})
    assert report.ended == fingerprints(training.whole_state())


def test_a_save_comes_last(moves: list[str], job: Job, training: Training) -> None:
    report = worker.work(replace(job, save=True, until=2), training)
    assert moves == ["save s3://bucket/run at step 2"]
    assert report.transfer == TRANSFER


def test_a_load_comes_first(moves: list[str], job: Job, training: Training) -> None:
    training.advance()
    loaded = fingerprints(training.whole_state())
    report = worker.work(replace(job, load=True), training)
    assert moves == ["load s3://bucket/run at step 1"]
    assert report.began == loaded
    assert list(report.losses) == ["step 2, shard 0", "step 3, shard 0", "step 4, shard 0"]


def test_tampering_shows_in_one_name(moves: list[str], job: Job, training: Training) -> None:
    training.advance()
    before = fingerprints(training.whole_state())
    after = worker.work(replace(job, load=True, tamper="norm.weight"), training).began
    assert {name for name in before if before[name] != after[name]} == {"model.norm.weight"}


def test_flipping_twice_is_not_flipping(training: Training) -> None:
    weight = training.model.head.weight.detach().clone()
    worker.flip_a_bit(training, "head.weight")
    assert (weight != training.model.head.weight).sum() == 1
    worker.flip_a_bit(training, "head.weight")
    assert torch.equal(weight, training.model.head.weight)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No torchrun's variables; what a worker sets of torch and warnings is put back."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    with warnings.catch_warnings():
        yield
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("alone")
def test_a_failure_leaves_its_traceback(tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job.write(tmp_path)
    monkeypatch.setattr(worker, "work", {}.__getitem__)
    with pytest.raises(TypeError):
        worker.main(tmp_path)
    assert "TypeError: " in (tmp_path / f"rank0{FAILURE_SUFFIX}").read_text()


@pytest.mark.usefixtures("alone")
def test_a_process_alone_trains_on_all_shards(tmp_path: Path, job: Job) -> None:
    replace(job, until=1, recipe=replace(job.recipe, shards=2)).write(tmp_path)
    worker.main(tmp_path)
    assert set(Report.read(tmp_path, 1).losses) == {"step 1, shard 0", "step 1, shard 1"}
