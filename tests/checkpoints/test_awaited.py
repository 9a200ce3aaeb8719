from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
import torch

from aiockpt import Checkpoints
from aiockpt.checkpoints.steps import Step
from aiockpt.errors import NotFound
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from dcp.checkpoints import Place, emptied, same_bits

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")  # DCP's, in a single process

STATE = {"w": torch.arange(10.0)}


async def test_a_runs_life(local: Place) -> None:
    for step in (1, 2, 3):
        local.save(STATE, f"run/step-{step:08d}")
    local.put("run/step-00000004/__0_0.distcp", b"x")
    run = Checkpoints(local.uri("run"), region="us-east-1", keep_last=1, **local.settings)
    assert [step.complete for step in await run.steps()] == [True, True, True, False]
    latest = await run.latest()
    assert latest is not None
    assert latest.step == 3
    assert [step.step for step in await run.prune()] == [1, 2]
    planned = await run.sweep(grace=timedelta(0), dry_run=True)
    assert await run.sweep(grace=timedelta(0)) == planned
    await run.delete(latest)
    assert local.keys() == []
    assert await run.latest() is None
    with pytest.raises(NotFound):
        await run.delete(3)


async def test_a_cancelled_call_ends(local: Place, local_endpoint: LocalEndpoint) -> None:
    run = Checkpoints(local.uri("run"), region="us-east-1", **local.settings)
    local_endpoint.add_fault(Fault(FaultKind.STALL, "ListObjectsV2", after_bytes=None, count=None))
    task = asyncio.ensure_future(run.steps())
    while not local_endpoint.stats().faults:  # noqa: ASYNC110  # what is waited for happens in another process
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    local_endpoint.clear_faults()
    assert await run.steps() == []


async def test_other_ranks_leave_deleting_to_the_first(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoints, "is_coordinator", False)
    local.save(STATE, "run/step-00000001")
    run = Checkpoints(local.uri("run"), region="us-east-1", keep_last=1, **local.settings)
    await run.delete(1)
    assert await run.prune() == []
    assert (await run.sweep(grace=timedelta(0))).removed == ()
    assert len(await run.steps()) == 1


async def test_a_training(local: Place) -> None:
    run = Checkpoints(local.uri("run"), region="us-east-1", keep_last=1, **local.settings)
    target = emptied(STATE)
    with pytest.raises(NotFound, match="there is no checkpoint in"):
        await run.load_latest(target)
    for step in (1, 2):
        assert (await run.save(step, STATE)) is not None
    assert [step.step for step in await run.steps()] == [2]
    assert (await run.load_latest(target)).step == 2
    assert same_bits(target, STATE)
    await run.load(2, target)


async def test_the_latest_is_deleted_before_it_is_loaded(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Checkpoints(local.uri("run"), region="us-east-1", **local.settings)
    for step in (1, 2):
        await run.save(step, STATE)
    real = Checkpoints.load

    async def load(self: Checkpoints, step: Step, *args: Any, **kwargs: Any) -> Any:
        if step.step > 1:
            await run.delete(step)
        return await real(self, step, *args, **kwargs)

    monkeypatch.setattr(Checkpoints, "load", load)
    target = emptied(STATE)
    assert (await run.load_latest(target)).step == 1
    assert same_bits(target, STATE)
