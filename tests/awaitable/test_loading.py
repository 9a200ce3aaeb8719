from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from aiockpt.awaitable import outcome
from aiockpt.awaitable.engine import Engine
from aiockpt.errors import ClosedError, ConfigError, NotFound
from aiockpt.model import MiB
from aiockpt.testing import Fault, FaultKind, LocalEndpoint, Shape
from awaitable.states import STATE, Gate, HeldLoadPlanner, cancelled, operation_threads, threads_left, until
from dcp.checkpoints import Place, emptied, raw_bytes, same_bits


class Model:
    """Stateful: notes what it is given."""

    def __init__(self) -> None:
        self.weights = torch.zeros_like(STATE["large"])
        self.given: list[Any] = []

    def state_dict(self) -> dict[str, Any]:
        return {"w": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.given.append(state_dict)


async def test_whatever_is_in_it(engine: Engine, local: Place) -> None:
    local.save(STATE)
    loaded = emptied(STATE)
    places = loaded["large"].data_ptr(), loaded["b"]["half"].data_ptr()
    seen: list[int] = []
    report = await engine.load(loaded, local.uri("ckpt"), on_progress=lambda p: seen.append(p.done_bytes))
    assert same_bits(loaded, STATE)
    assert (loaded["large"].data_ptr(), loaded["b"]["half"].data_ptr()) == places
    assert report.kind == "load"
    assert seen[-1] > 0


@pytest.mark.parametrize("uri", ["/tmp/ckpt", "s3://", None])
async def test_what_is_no_uri_of_s3(engine: Engine, uri: Any) -> None:
    with pytest.raises(ConfigError, match="s3://bucket/path"):
        await engine.load({}, uri)


async def test_a_process_alone_gets_the_error_itself(engine: Engine, local: Place) -> None:
    with pytest.raises(NotFound, match="no complete checkpoint"):
        await engine.load(emptied(STATE), local.uri("missing"))


async def test_a_cancelled_load_leaves_the_memory_alone(
    engine: Engine, local: Place, local_endpoint: LocalEndpoint
) -> None:
    local.save({"model": {"w": STATE["large"]}})
    local_endpoint.set_shape(Shape(connection_bytes_per_s=4 * MiB))
    model = Model()
    task = asyncio.create_task(engine.load({"model": model}, local.uri("ckpt")))
    await until(model.weights.any)
    await cancelled(task)
    before = raw_bytes(model.weights)
    assert threads_left() == []
    await asyncio.sleep(0.05)
    assert raw_bytes(model.weights) == before
    assert model.given == []


async def test_cancelling_while_it_waits_for_the_first_byte(
    engine: Engine, local: Place, local_endpoint: LocalEndpoint
) -> None:
    local.save(STATE)
    local_endpoint.add_fault(Fault(FaultKind.STALL, "GetObject", count=None))
    task = asyncio.create_task(engine.load(emptied(STATE), local.uri("ckpt")))
    await until(lambda: local_endpoint.stats().requests_current)
    await cancelled(task)
    assert threads_left() == []


async def test_cancelling_while_it_plans(engine: Engine, local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait is over although the planner works on; no tensor is filled, and no stateful object told."""
    monkeypatch.setattr(outcome, "WIND_UP_S", 0.05)
    local.save({"model": {"w": STATE["large"]}})
    gate, model = Gate(), Model()
    task = asyncio.create_task(engine.load({"model": model}, local.uri("ckpt"), planner=HeldLoadPlanner(gate)))
    await gate.until_reached()
    await cancelled(task)
    assert operation_threads() != []
    gate.open.set()
    await until(lambda: operation_threads() == [])
    assert not model.weights.any()
    assert model.given == []


async def test_a_prefetch_comes_into_memory_of_its_own(engine: Engine, local: Place) -> None:
    local.save(STATE)
    current = emptied(STATE)
    prefetch = engine.prefetch(local.uri("ckpt"), current)
    report = await prefetch
    assert not current["large"].any()
    assert prefetch.done
    places = current["large"].data_ptr(), current["b"]["half"].data_ptr()
    assert await prefetch.into(current) == report
    assert same_bits(current, STATE)
    assert (current["large"].data_ptr(), current["b"]["half"].data_ptr()) == places


async def test_a_prefetch_for_stateful_objects(engine: Engine, local: Place) -> None:
    local.save({"model": {"w": STATE["large"]}})
    model = Model()
    prefetch = engine.prefetch(local.uri("ckpt"), {"model": model})
    await prefetch
    assert model.given == []
    await prefetch.into({"model": model})
    assert [same_bits(given, {"w": STATE["large"]}) for given in model.given] == [True]


async def test_giving_up_the_wait_for_a_prefetch(engine: Engine, local: Place, local_endpoint: LocalEndpoint) -> None:
    local.save(STATE)
    local_endpoint.add_fault(Fault(FaultKind.STALL, "GetObject", count=None))
    current = emptied(STATE)
    prefetch = engine.prefetch(local.uri("ckpt"), current)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(prefetch.into(current), 0.01)
    local_endpoint.clear_faults()
    await prefetch.into(current)
    assert same_bits(current, STATE)


async def test_a_prefetch_that_is_not_wanted_any_more(
    engine: Engine, local: Place, local_endpoint: LocalEndpoint
) -> None:
    local.save(STATE)
    local_endpoint.add_fault(Fault(FaultKind.STALL, "GetObject", count=None))
    prefetch = engine.prefetch(local.uri("ckpt"), emptied(STATE))
    await prefetch.aclose()
    with pytest.raises(ClosedError):
        await prefetch.into({})


async def test_a_prefetch_that_fails(engine: Engine, local: Place) -> None:
    prefetch = engine.prefetch(local.uri("missing"), emptied(STATE))
    with pytest.raises(NotFound):
        await prefetch.into(emptied(STATE))
