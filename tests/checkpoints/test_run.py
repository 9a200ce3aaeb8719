"""What can be done with a run's checkpoints, on an engine."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, TypeVar

import pytest
import torch

from aiockpt.blocking.store import Store
from aiockpt.checkpoints.retention import Retention
from aiockpt.checkpoints.run import Run
from aiockpt.checkpoints.steps import NAME, Step
from aiockpt.config import S3ClientConfig
from aiockpt.engine.engine import LoopEngine
from aiockpt.errors import AccessDenied, ConfigError, MetadataError, NotFound
from aiockpt.model import ObjectId
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from dcp.checkpoints import Place

T = TypeVar("T")

STATE = {"w": torch.arange(10.0)}


def do(place: Place, work: Callable[[LoopEngine], Coroutine[Any, Any, T]]) -> T:
    return Store(S3ClientConfig(**place.settings), place.server.region).run(work)


def run_in(place: Place, key: str = "run", **retention: Any) -> Run:
    return Run(ObjectId(place.bucket, key), Retention(**retention), NAME)


def saved(place: Place, *steps: int, run: str = "run") -> None:
    for step in steps:
        place.save(STATE, f"{run}/step-{step:08d}")


def test_elsewhere(foreign: Place) -> None:
    place, run = foreign, run_in(foreign, keep_last=1, keep_every=20)
    assert do(place, run.steps) == []
    assert do(place, run.latest) is None
    saved(place, 10, 20, 30)
    place.put("run/step-00000040/__0_0.distcp", b"x")
    place.put("run/notes.txt", b"x")
    place.put("run/eval/.metadata", b"x")
    steps = do(place, run.steps)
    assert [(step.step, step.complete) for step in steps] == [(10, True), (20, True), (30, True), (40, False)]
    assert [step.modified is not None for step in steps] == [True, True, True, False]
    assert steps[0].uri == place.uri("run/step-00000010")
    assert do(place, run.latest) == steps[2]
    assert do(place, run.prune) == steps[:1]
    assert do(place, run.prune) == []
    swept = do(place, lambda engine: run.sweep(engine, timedelta(0), dry_run=False))
    assert [verdict.remnant.key for verdict in swept.removed] == ["run/step-00000040/__0_0.distcp"]
    do(place, lambda engine: run.delete(engine, 20))
    assert place.keys() == [
        "run/eval/.metadata",
        "run/notes.txt",
        "run/step-00000030/.metadata",
        "run/step-00000030/__0_0.distcp",
    ]


def test_names_that_others_gave(local: Place) -> None:
    saved(local, 5)
    for name in ("checkpoint-7", "global_step6", "3", "final", "00000004"):
        local.put(f"run/{name}/.metadata", local.get("run/step-00000005/.metadata"))
    run = run_in(local, keep_last=1)
    assert [step.name for step in do(local, run.steps)] == [
        "3", "00000004", "step-00000005", "global_step6", "checkpoint-7",
    ]  # fmt: skip
    latest = do(local, run.latest)
    assert latest is not None
    assert run.path(latest).key == "run/checkpoint-7"
    assert do(local, run.prune) == []
    saved(local, 8)
    assert [step.name for step in do(local, run.prune)] == ["step-00000005"]


def test_a_training_that_went_back_keeps_what_it_has_just_saved(local: Place, caplog: pytest.LogCaptureFixture) -> None:
    run = run_in(local, keep_last=1)
    saved(local, 30, 40, 20)
    assert [step.step for step in do(local, lambda engine: run.prune(engine, 20))] == [30]
    assert "step-00000020 was saved beside later steps: load_latest loads step-00000040" in caplog.text
    saved(local, 50)
    caplog.clear()
    assert [step.step for step in do(local, lambda engine: run.prune(engine, 50))] == [20, 40]
    assert not caplog.text


def test_where_all_stay_pruning_asks_for_nothing(local: Place, local_endpoint: LocalEndpoint) -> None:
    saved(local, 1, 2)
    local_endpoint.reset_stats()
    assert do(local, run_in(local).prune) == []
    assert local_endpoint.stats().requests == {}


def test_looking_is_cheap(local: Place, local_endpoint: LocalEndpoint) -> None:
    saved(local, *range(6))
    run = run_in(local)
    local_endpoint.reset_stats()
    do(local, run.steps)
    assert local_endpoint.stats().requests == {"ListObjectsV2": 7}
    local_endpoint.reset_stats()
    do(local, run.latest)
    assert local_endpoint.stats().requests == {"ListObjectsV2": 2}


def test_a_run_at_the_root_of_a_bucket(local: Place) -> None:
    local.save(STATE, "step-00000001")
    run = run_in(local, "")
    (step,) = do(local, run.steps)
    assert (step.complete, step.uri) == (True, local.uri("step-00000001"))
    do(local, lambda engine: run.delete(engine, step))
    assert local.keys() == []


def test_a_step_of_ranks_is_complete_with_all_of_them(local: Place) -> None:
    for key in ("__0.metadata", "__0_0.distcp", "__1_0.distcp"):
        local.put(f"run/step-1/{key}", b"x")
    run = run_in(local)
    assert do(local, run.latest) is None
    local.put("run/step-1/__1.metadata", b"x")
    latest = do(local, run.latest)
    assert latest is not None
    assert latest == Step(1, "step-1", local.uri("run/step-1"), complete=True, modified=latest.modified)


@pytest.mark.parametrize(
    ("key", "said"), [("other/x", "there is no checkpoint in"), ("run/step-9/__0_0.distcp", "the last one step-9")]
)
def test_what_is_there_instead_of_a_latest(local: Place, key: str, said: str) -> None:
    local.put(key, b"x")
    with pytest.raises(NotFound, match=said) as caught:
        do(local, run_in(local).require_latest)
    assert (caught.value.bucket, caught.value.key) == (local.bucket, "run")
    assert local.uri("run") in str(caught.value)


def test_a_step_that_cannot_be_deleted_keeps_no_others(local: Place) -> None:
    saved(local, 1, 2, 3)
    local.put("run/step-00000001/.metadata", b"damaged")
    run = run_in(local, keep_last=1)
    with pytest.raises(MetadataError, match="step-00000001"):
        do(local, run.prune)
    assert [step.step for step in do(local, run.steps)] == [1, 3]


def test_a_step_that_someone_else_deletes_meanwhile(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(local, 1, 2, 3)
    run = run_in(local, keep_last=1)
    real = Run.steps

    async def steps_then_deleted(self: Run, engine: LoopEngine) -> list[Step]:
        found = await real(self, engine)
        await self.delete(engine, 1)
        return found

    monkeypatch.setattr(Run, "steps", steps_then_deleted)
    assert [step.step for step in do(local, run.prune)] == [2]


def test_refusals(local: Place, local_endpoint: LocalEndpoint) -> None:
    saved(local, 1, 2)
    run = run_in(local, keep_last=1)
    with pytest.raises(NotFound, match="step-00000009"):
        do(local, lambda engine: run.delete(engine, 9))
    with pytest.raises(ConfigError, match="0 or more"):
        run.path(-1)
    local_endpoint.add_fault(Fault(FaultKind.ERROR, "DeleteObject", status=403, code="AccessDenied", count=None))
    with pytest.raises(AccessDenied):
        do(local, run.prune)
    assert [step.complete for step in do(local, run.steps)] == [True, True]
