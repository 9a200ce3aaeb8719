from __future__ import annotations

import asyncio
import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed.checkpoint as dcp

from aiockpt.awaitable.engine import Engine
from aiockpt.awaitable.tensors import Arrivals
from aiockpt.errors import ChecksumMismatch, ClosedError, ConfigError, MetadataError, NotFound, TargetMismatch
from aiockpt.model import MiB
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from awaitable.states import STATE, cancelled, large_state, threads_left, until
from dcp.checkpoints import Place, StateDict, random_tensor, same_bits

TENSORS = {"large": STATE["large"], "b.half": STATE["b"]["half"], "a": STATE["a"]}


async def arrived(engine: Engine, uri: str, **kwargs: object) -> StateDict:
    return {name: tensor async for name, tensor in engine.load_tensors(uri, **kwargs)}  # type: ignore[arg-type]


async def test_all_of_a_checkpoint(engine: Engine, local: Place) -> None:
    local.save(STATE)
    assert same_bits(await arrived(engine, local.uri("ckpt")), TENSORS)


@pytest.mark.parametrize("ahead_bytes", [1, MiB, 1 << 40])
async def test_any_distance_ahead(engine: Engine, local: Place, ahead_bytes: int) -> None:
    local.save(STATE)
    assert same_bits(await arrived(engine, local.uri("ckpt"), ahead_bytes=ahead_bytes), TENSORS)


async def test_some_by_name(engine: Engine, local: Place) -> None:
    local.save(STATE)
    found = await arrived(engine, local.uri("ckpt"), names=["b.half", "b.half"])
    assert same_bits(found, {"b.half": STATE["b"]["half"]})
    assert await arrived(engine, local.uri("ckpt"), names=[]) == {}


@pytest.mark.parametrize(("name", "why"), [("b.count", "is no tensor"), ("c", "is not in the checkpoint")])
async def test_a_name_that_is_no_tensors(engine: Engine, local: Place, name: str, why: str) -> None:
    local.save(STATE)
    with pytest.raises(MetadataError, match=why):
        await arrived(engine, local.uri("ckpt"), names=["a", name])


async def test_tensors_of_the_callers(engine: Engine, local: Place) -> None:
    local.save(STATE)
    state = {"b": {"half": torch.zeros(7, dtype=torch.float64)}, "a": torch.zeros_like(STATE["a"]).t().contiguous().t()}
    found = await arrived(engine, local.uri("ckpt"), state_dict=state)
    assert found.keys() == {"b.half", "a"}
    assert found["b.half"] is state["b"]["half"]  # type: ignore[index]
    assert torch.equal(found["b.half"].to(torch.bfloat16), STATE["b"]["half"]) or STATE["b"]["half"].isnan().any()
    assert same_bits(found["a"], STATE["a"])


async def test_a_target_of_another_shape(engine: Engine, local: Place) -> None:
    local.save(STATE)
    with pytest.raises(TargetMismatch, match="'a'"):
        await arrived(engine, local.uri("ckpt"), state_dict={"a": torch.zeros(300, 999)})


async def test_tensors_without_elements_and_without_dimensions(engine: Engine, local: Place) -> None:
    state = {"empty": torch.zeros(0, 3), "scalar": torch.tensor(3.5), "bool": torch.tensor([True, False])}
    local.save(state)
    assert same_bits(await arrived(engine, local.uri("ckpt")), state)


async def test_a_checkpoint_without_tensors(engine: Engine, local: Place) -> None:
    local.save({"n": 3})
    assert await arrived(engine, local.uri("ckpt")) == {}


async def test_no_checkpoint(engine: Engine, local: Place) -> None:
    with pytest.raises(NotFound, match="no complete checkpoint"):
        await arrived(engine, local.uri("missing"))


async def test_what_is_refused_at_once(engine: Engine) -> None:
    with pytest.raises(ConfigError):
        engine.load_tensors("/tmp/ckpt")
    with pytest.raises(ConfigError, match="ahead_bytes"):
        engine.load_tensors("s3://bucket/ckpt", ahead_bytes=0)


async def test_a_damaged_tensor_is_never_handed_over(
    engine: Engine, local: Place, local_endpoint: LocalEndpoint
) -> None:
    local.save({"w": STATE["large"]})
    local_endpoint.add_fault(Fault(FaultKind.FLIP_BIT, "GetObject", key=".distcp", count=None, after_bytes=5000))
    stream = engine.load_tensors(local.uri("ckpt"))
    for _ in range(2):  # however often one asks
        with pytest.raises(ChecksumMismatch, match="'w'"):
            await anext(stream)


async def test_the_load_waits_for_a_slow_consumer(engine: Engine, local: Place, local_endpoint: LocalEndpoint) -> None:
    """While the first of 32 tensors is looked at, the load goes so far ahead and no further."""
    state = large_state(64 * MiB, 32)
    local.save(state)
    local_endpoint.reset_stats()
    most = 8 * MiB + 3 * 2 * MiB  # as far ahead as allowed, two tensors beyond, and the one that was taken
    async with engine.load_tensors(local.uri("ckpt"), ahead_bytes=8 * MiB) as stream:
        name, tensor = await anext(stream)
        assert same_bits(tensor, state[name])
        await until(lambda: local_endpoint.stats().body_bytes_out > 4 * MiB)
        await asyncio.sleep(0.1)
        assert local_endpoint.stats().body_bytes_out <= most + MiB  # and what surrounds tensors
        rest = {name: tensor async for name, tensor in stream}
    assert len(rest) == 31
    assert all(same_bits(tensor, state[name]) for name, tensor in rest.items())


async def test_sharded_tensors_come_whole_one_after_the_other(engine: Engine, local: Place) -> None:
    """Of a checkpoint that several ranks have cut up no more is held than of one that a single rank wrote."""
    state = {f"w{n}": random_tensor((8, 1000), torch.float32, n) for n in range(20)}
    save_in_slices(local, state, ranks=4)
    seen = []
    async for name, tensor in engine.load_tensors(local.uri("ckpt"), ahead_bytes=64_000):
        assert same_bits(tensor, state[name])
        seen.append(name)
    assert sorted(seen) == sorted(state)


async def test_leaving_early(engine: Engine, local: Place) -> None:
    local.save(large_state(32 * MiB, 16))
    async for _ in engine.load_tensors(local.uri("ckpt"), ahead_bytes=4 * MiB):
        break
    await until(lambda: threads_left() == [])


async def test_closing(engine: Engine, local: Place) -> None:
    local.save(large_state(32 * MiB, 16))
    stream = engine.load_tensors(local.uri("ckpt"), ahead_bytes=4 * MiB)
    await anext(stream)
    await stream.aclose()
    assert threads_left() == []
    await stream.aclose()
    assert [item async for item in stream] == []
    await engine.load_tensors(local.uri("ckpt")).aclose()  # which has not begun


async def test_a_cancelled_step(engine: Engine, local: Place, local_endpoint: LocalEndpoint) -> None:
    local.save(STATE)
    local_endpoint.add_fault(Fault(FaultKind.STALL, "GetObject", key=".distcp", count=None))
    stream = engine.load_tensors(local.uri("ckpt"))
    task = asyncio.ensure_future(anext(stream))
    await until(lambda: stream.progress() and local_endpoint.stats().requests_current)
    await cancelled(task)
    assert threads_left() == []


async def test_a_save_and_a_load_while_it_is_held_up(engine: Engine, local: Place) -> None:
    """A consumer that saves and loads on its way does not wait for itself, even if that has to be staged."""
    state = large_state(32 * MiB, 8)
    local.save(state)
    async with engine.load_tensors(local.uri("ckpt"), ahead_bytes=4 * MiB) as stream:
        async for name, tensor in stream:
            wide = {"w": torch.zeros(len(tensor), 2, dtype=torch.int32)[:, 0]}
            wide["w"].copy_(tensor)
            await engine.save(wide, local.uri(name))
            wide["w"].zero_()
            await engine.load(wide, local.uri(name))
            assert torch.equal(wide["w"], state[name])


async def test_progress_and_report(engine: Engine, local: Place) -> None:
    local.save(STATE)
    stream = engine.load_tensors(local.uri("ckpt"))
    assert stream.progress() is None
    async for _ in stream:
        assert stream.progress() is not None
    assert stream.report is not None
    assert stream.report.wanted_bytes >= sum(tensor.nbytes for tensor in TENSORS.values())


def save_in_slices(place: Place, state: StateDict, ranks: int) -> None:
    """As if ``ranks`` ranks had saved row slices of each tensor, each to an object of its own."""
    place.save(state, planner=Sliced(ranks), thread_count=ranks)


class Sliced(dcp.DefaultSavePlanner):
    """Cuts tensors into row slices."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self._pieces = pieces

    def create_local_plan(self) -> dcp.SavePlan:
        plan = super().create_local_plan()
        return dataclasses.replace(plan, items=[piece for item in plan.items for piece in self._cut(item)])

    def _cut(self, item: dcp.planner.WriteItem) -> list[dcp.planner.WriteItem]:
        data = item.tensor_data
        assert data is not None
        rows = data.size[0] // self._pieces
        pieces = []
        for first in range(0, data.size[0], rows):
            offsets, sizes = torch.Size([first, 0]), torch.Size([rows, *data.size[1:]])
            chunk = dcp.metadata.ChunkStorageMetadata(offsets, sizes)
            index = dcp.metadata.MetadataIndex(item.index.fqn, offsets)
            written = dcp.planner.TensorWriteData(chunk, data.properties, data.size)
            pieces.append(dcp.planner.WriteItem(index, dcp.planner.WriteItemType.SHARD, tensor_data=written))
        return pieces

    def lookup_object(self, index: dcp.metadata.MetadataIndex) -> torch.Tensor:
        tensor: torch.Tensor = self.state_dict[index.fqn]
        rows = tensor.shape[0] // self._pieces
        assert index.offset is not None
        return tensor[index.offset[0] : index.offset[0] + rows]


# ---- Arrivals


def test_arrivals_come_in_order_and_then_end() -> None:
    arrivals = Arrivals(100)
    tensors = [torch.zeros(n) for n in range(3)]
    early = arrivals.ask()
    for n, tensor in enumerate(tensors):
        arrivals.put(str(n), tensor)
    arrivals.end(None)
    found = [early.result(), arrivals.ask().result(), arrivals.ask().result()]
    assert [item and item[1] for item in found] == tensors or all(
        item is not None and item[1] is tensor for item, tensor in zip(found, tensors, strict=True)
    )
    assert arrivals.ask().result() is None
    assert arrivals.ask().result() is None


def test_an_error_comes_after_what_has_arrived() -> None:
    arrivals = Arrivals(100)
    arrivals.put("a", torch.zeros(1))
    arrivals.end(LookupError("late"))
    assert arrivals.ask().result() is not None
    with pytest.raises(LookupError):
        arrivals.ask().result()


def test_putting_waits_while_more_than_enough_is_there() -> None:
    arrivals = Arrivals(10)
    with ThreadPoolExecutor(1) as thread:
        arrivals.put("a", torch.zeros(3))
        waiting = thread.submit(arrivals.put, "b", torch.zeros(3))
        assert not waiting.done()
        assert arrivals.ask().result() is not None
        waiting.result(10)


def test_cancelling_wakes_who_puts() -> None:
    arrivals = Arrivals(1)
    arrivals.put("a", torch.zeros(3))
    canceller = threading.Timer(0.01, arrivals.cancel)
    canceller.start()
    with pytest.raises(ClosedError):
        arrivals.put("b", torch.zeros(3))
    canceller.join()
