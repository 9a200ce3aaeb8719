from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from aiockpt import BlockingCheckpoints
from aiockpt.checkpoints.steps import Step
from aiockpt.errors import NotFound
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from dcp.checkpoints import Place, emptied, failure, same_bits

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")  # DCP's, in a single process


def state(value: float) -> dict[str, Any]:
    return {"w": torch.full((100,), value), "step": int(value)}


def run_in(place: Place, **settings: Any) -> BlockingCheckpoints:
    return BlockingCheckpoints(place.uri("run"), region=place.server.region, **place.settings, **settings)


def test_a_training_elsewhere(foreign: Place) -> None:
    run = run_in(foreign, keep_last=2, keep_every=30)
    with pytest.raises(NotFound, match="there is no checkpoint in"):
        run.load_latest(state(0))
    for step in (10, 20, 30, 40, 50, 60):
        report = run.save(step, state(step))
        assert report is not None
    assert [step.step for step in run.steps()] == [30, 50, 60]
    target = emptied(state(0))
    assert run.load_latest(target).step == 60
    assert same_bits(target, state(60))
    assert run.load(30, target) is not None
    assert same_bits(target, state(30))
    run.delete(60)
    latest = run.latest()
    assert latest is not None
    assert latest.step == 50
    run.load(latest, target)
    assert same_bits(target, state(50))
    foreign.put("run/step-00000070/__0_0.distcp", b"x")
    assert run.load_latest(target) == latest
    assert len(run.sweep(grace=timedelta(0)).removed) == 1
    assert len(foreign.keys()) == 4


def test_the_latest_is_deleted_before_it_is_loaded(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_in(local)
    for step in (1, 2, 3):
        run.save(step, state(step))
    real = BlockingCheckpoints.load

    def load(self: BlockingCheckpoints, step: Step, *args: Any, **kwargs: Any) -> Any:
        if step.step > 1:
            run.delete(step)
        return real(self, step, *args, **kwargs)

    monkeypatch.setattr(BlockingCheckpoints, "load", load)
    target = emptied(state(0))
    assert run.load_latest(target).step == 1
    assert same_bits(target, state(1))


def test_a_latest_whose_data_is_missing_is_not_tried_for_ever(local: Place, local_endpoint: LocalEndpoint) -> None:
    run = run_in(local)
    run.save(1, state(1))
    local.client.delete_object(Bucket=local.bucket, Key="run/step-00000001/__0_0.distcp")
    with pytest.raises(CheckpointException) as caught:
        run.load_latest(state(0))
    assert isinstance(failure(caught.value), NotFound)


def test_a_save_does_not_prune_itself(local: Place) -> None:
    run = run_in(local, keep_last=1)
    run.save(9, state(9))
    run.save(5, state(5))
    assert [step.step for step in run.steps()] == [5, 9]


def test_what_cannot_be_pruned_is_no_failure_of_the_save(
    local: Place, local_endpoint: LocalEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_in(local, keep_last=1)
    run.save(1, state(1))
    local_endpoint.add_fault(Fault(FaultKind.ERROR, "DeleteObject", status=403, code="AccessDenied"))
    with caplog.at_level(logging.WARNING, "aiockpt"):
        run.save(2, state(2))
    assert "could not be pruned" in caplog.text
    assert len(run.steps()) == 2
    run.save(3, state(3))
    assert [step.step for step in run.steps()] == [3]


def test_failures_of_a_load_are_not_tried_again(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_in(local)
    run.save(1, state(1))
    calls = 0
    real = dcp.load

    def load(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return real(*args, **kwargs)

    monkeypatch.setattr(dcp, "load", load)
    with pytest.raises((CheckpointException, ValueError)):
        run.load_latest({"w": torch.zeros(7)})
    assert calls == 1


def test_other_ranks_leave_deleting_to_the_first(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlockingCheckpoints, "is_coordinator", False)
    run = run_in(local, keep_last=1)
    for step in (1, 2):
        run.save(step, state(step))
    run.delete(1)
    assert run.sweep(grace=timedelta(0)).kept == ()
    assert len(run.steps()) == 2
