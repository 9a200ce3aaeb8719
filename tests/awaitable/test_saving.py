from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import textwrap
import threading
from typing import Any

import anyio
import pytest
import torch
import torch.distributed.checkpoint.filesystem as stock
from torch.distributed.checkpoint.staging import BlockingAsyncStager

from aiockpt.awaitable import outcome
from aiockpt.awaitable.engine import Engine
from aiockpt.errors import ClosedError, ConfigError, NotFound
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from awaitable.states import STATE, Gate, HeldSavePlanner, cancelled, operation_threads, threads_left, until
from bridge.work import needs_late_threads
from dcp.checkpoints import Place, emptied, same_bits, save


class Counter:
    """Stateful: saves what it counts."""

    def __init__(self, count: int = 0) -> None:
        self.count = count
        self.threads: set[threading.Thread] = set()

    def state_dict(self) -> dict[str, Any]:
        self.threads.add(threading.current_thread())
        return {"count": torch.tensor(self.count)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = int(state_dict["count"])


def objects(place: Place) -> dict[str, bytes]:
    keys = place.keys()
    return {key: place.get(key) for key in keys}


async def test_the_same_objects_as_dcp_saves(engine: Engine, local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock, "_generate_uuid", lambda: "one")
    await engine.save(STATE, local.uri("ckpt"), thread_count=2)
    ours = objects(local)
    for key in ours:
        local.client.delete_object(Bucket=local.bucket, Key=key)
    save(STATE, local.writer(thread_count=2, part_size=engine.config.part_size))
    assert len(ours) == 3
    assert ours == objects(local)


async def test_a_report_and_progress(engine: Engine, local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    report = await engine.save(STATE, local.uri("ckpt"), on_progress=lambda progress: seen.append(progress.done_bytes))
    assert (report.kind, report.uri, report.rank) == ("save", local.uri("ckpt"), 0)
    assert seen
    assert seen[-1] == report.wanted_bytes


async def test_stateful_objects_are_asked_in_the_operations_thread(engine: Engine, local: Place) -> None:
    counter, other = Counter(7), Counter()
    await engine.save({"counter": counter}, local.uri("ckpt"))
    await engine.load({"counter": other}, local.uri("ckpt"))
    assert other.count == 7
    assert threading.current_thread() not in counter.threads


@pytest.mark.parametrize("uri", ["/tmp/ckpt", "gs://bucket/ckpt", "s3://", 5])
async def test_what_is_no_uri_of_s3(engine: Engine, uri: Any) -> None:
    with pytest.raises(ConfigError, match="s3://bucket/path"):
        await engine.save(STATE, uri)


async def test_a_process_alone_gets_the_error_itself(engine: Engine, local: Place) -> None:
    with pytest.raises(NotFound) as caught:
        await engine.save(STATE, "s3://no-such-bucket/ckpt")
    assert caught.value.bucket == "no-such-bucket"


async def stalled_save(engine: Engine, local: Place, endpoint: LocalEndpoint) -> asyncio.Task[Any]:
    """A save whose parts do not get through."""
    endpoint.add_fault(Fault(FaultKind.STALL, "UploadPart", count=None, after_bytes=1000))
    task = asyncio.create_task(engine.save(STATE, local.uri("ckpt")))
    await until(lambda: endpoint.stats().uploads_open)
    return task


async def test_cancelling_aborts_the_uploads(engine: Engine, local: Place, local_endpoint: LocalEndpoint) -> None:
    task = await stalled_save(engine, local, local_endpoint)
    await cancelled(task)
    assert threads_left() == []
    assert local_endpoint.stats().uploads_open == 0
    assert local.keys() == []


async def test_a_cancel_scope_of_anyio(engine: Engine, local: Place, local_endpoint: LocalEndpoint) -> None:
    local_endpoint.add_fault(Fault(FaultKind.STALL, "UploadPart", count=None, after_bytes=1000))
    async with anyio.create_task_group() as group:
        group.start_soon(engine.save, STATE, local.uri("ckpt"))
        await until(lambda: local_endpoint.stats().uploads_open)
        group.cancel_scope.cancel()
    assert threads_left() == []
    assert local_endpoint.stats().uploads_open == 0


async def test_cancelling_again_and_again(engine: Engine, local: Place, local_endpoint: LocalEndpoint) -> None:
    task = await stalled_save(engine, local, local_endpoint)
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    assert task.cancelled()
    assert threads_left() == []
    assert local_endpoint.stats().uploads_open == 0


async def test_cancelling_one_of_two_leaves_the_other_alone(
    engine: Engine, local: Place, local_endpoint: LocalEndpoint
) -> None:
    local_endpoint.add_fault(Fault(FaultKind.STALL, "UploadPart", key="one", count=None, after_bytes=1000))
    one = asyncio.create_task(engine.save(STATE, local.uri("one")))
    other = asyncio.create_task(engine.save(STATE, local.uri("other")))
    await until(lambda: local_endpoint.stats().uploads_open)
    await cancelled(one)
    await other
    loaded = emptied(STATE)
    await engine.load(loaded, local.uri("other"))
    assert same_bits(loaded, STATE)


async def test_cancelling_while_it_plans(
    engine: Engine, local: Place, local_endpoint: LocalEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait is over although the planner works on; that finds the storage closed."""
    monkeypatch.setattr(outcome, "WIND_UP_S", 0.05)
    gate = Gate()
    task = asyncio.create_task(engine.save(STATE, local.uri("ckpt"), planner=HeldSavePlanner(gate)))
    await gate.until_reached()
    await cancelled(task)
    assert operation_threads() != []
    gate.open.set()
    await until(lambda: operation_threads() == [])
    assert [r.operation for r in local_endpoint.requests() if r.operation.startswith(("Put", "Create"))] == []


async def test_a_coroutine_that_is_thrown_away(engine: Engine, local: Place, local_endpoint: LocalEndpoint) -> None:
    local_endpoint.add_fault(Fault(FaultKind.STALL, "UploadPart", count=None, after_bytes=1000))
    coroutine = engine.save(STATE, local.uri("ckpt"))
    coroutine.send(None)
    await until(lambda: local_endpoint.stats().uploads_open)
    coroutine.close()
    await until(lambda: operation_threads() == [])
    assert local_endpoint.stats().uploads_open == 0


async def test_in_the_background_of_copies(engine: Engine, local: Place, local_endpoint: LocalEndpoint) -> None:
    local_endpoint.add_fault(Fault(FaultKind.STALL, "UploadPart", count=None, after_bytes=1000))
    state = {"w": STATE["large"].clone()}
    background = engine.save_in_background(state, local.uri("ckpt"))
    await background.staged
    state["w"].zero_()
    await until(lambda: local_endpoint.stats().uploads_open)
    progress = background.progress()
    assert progress is not None
    assert progress.done_bytes < progress.total_bytes
    ended = [background.done]
    local_endpoint.clear_faults()
    assert (await background).uri == local.uri("ckpt")
    assert [*ended, background.done] == [False, True]
    await engine.load(state, local.uri("ckpt"))
    assert same_bits(state["w"], STATE["large"])


async def test_in_the_background_of_the_tensors_themselves(
    engine: Engine, local: Place, local_endpoint: LocalEndpoint
) -> None:
    local_endpoint.add_fault(Fault(FaultKind.STALL, "UploadPart", count=None, after_bytes=1000))
    background = engine.save_in_background(STATE, local.uri("ckpt"), copy=False)
    await until(lambda: local_endpoint.stats().uploads_open)
    assert not background.staged.done
    local_endpoint.clear_faults()
    await background
    assert background.staged.done


async def test_a_stager_of_the_callers(engine: Engine, local: Place) -> None:
    stager = BlockingAsyncStager()
    staged: list[Any] = []

    def stage(state_dict: dict[str, Any]) -> Any:
        staged.append(state_dict)
        return BlockingAsyncStager.stage(stager, state_dict)

    stager.stage = stage  # type: ignore[method-assign]
    await engine.save_in_background(STATE, local.uri("ckpt"), stager=stager)
    assert [state.keys() for state in staged] == [STATE.keys()]


async def test_giving_up_a_wait_leaves_a_background_save_alone(
    engine: Engine, local: Place, local_endpoint: LocalEndpoint
) -> None:
    local_endpoint.add_fault(Fault(FaultKind.STALL, "UploadPart", count=None, after_bytes=1000))
    background = engine.save_in_background(STATE, local.uri("ckpt"))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(background, 0.01)
    with pytest.raises(TimeoutError):
        background.result(0.01)
    local_endpoint.clear_faults()
    await background


async def test_cancelling_a_background_save(engine: Engine, local: Place, local_endpoint: LocalEndpoint) -> None:
    local_endpoint.add_fault(Fault(FaultKind.STALL, "UploadPart", count=None, after_bytes=1000))
    background = engine.save_in_background(STATE, local.uri("ckpt"), copy=False)
    await until(lambda: local_endpoint.stats().uploads_open)
    await background.aclose()
    assert local_endpoint.stats().uploads_open == 0
    for pending in (background, background.staged):
        with pytest.raises(ClosedError, match="cancelled by its caller"):
            await pending
    await background.aclose()


async def test_a_background_save_that_fails_is_logged(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    background = engine.save_in_background(STATE, "s3://no-such-bucket/ckpt")
    with pytest.raises(NotFound):
        await background
    (record,) = [record for record in caplog.records if (record.name, record.levelno) == ("aiockpt", logging.ERROR)]
    assert "s3://no-such-bucket/ckpt failed: NotFound" in record.getMessage()


async def test_a_failure_that_nobody_looks_at_is_told(engine: Engine) -> None:
    background = engine.save_in_background(STATE, "s3://no-such-bucket/ckpt")
    await until(lambda: background.done)
    with pytest.warns(RuntimeWarning, match="s3://no-such-bucket/ckpt failed, and nobody has looked: NotFound"):
        background.__del__()
    with pytest.raises(NotFound):
        background.result()
    background.__del__()


def run(source: str) -> str:
    """The output of a program that ends by itself, and well."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:torch.distributed is disabled", "-c", textwrap.dedent(source)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@needs_late_threads
def test_exit_waits_for_background_saves(local: Place) -> None:
    settings = f"region='us-east-1', endpoint_url={local.server.endpoint_url!r}"
    run(f"""
        import asyncio, torch, aiockpt
        async def main():
            aiockpt.save_in_background({{"w": torch.ones(3_000_000)}}, "{local.uri("ckpt")}", {settings})
        asyncio.run(main())
    """)
    assert local.load({"w": torch.zeros(3_000_000)})["w"].sum() == 3_000_000


def test_ctrl_c_ends_what_is_awaited(local: Place, local_endpoint: LocalEndpoint) -> None:
    local_endpoint.add_fault(Fault(FaultKind.STALL, "UploadPart", count=None, after_bytes=1000))

    def mark_when_it_has_begun() -> None:
        while not local_endpoint.stats().uploads_open:
            threading.Event().wait(0.005)
        local.put("marker", b"")

    marker = threading.Thread(target=mark_when_it_has_begun)
    marker.start()
    said = run(f"""
        import asyncio, os, signal, threading, torch, aiockpt
        async def main():
            config = aiockpt.S3ClientConfig(endpoint_url={local.server.endpoint_url!r}, part_size=5 << 20)
            engine = aiockpt.Engine(config, "us-east-1")
            save = asyncio.ensure_future(engine.save({{"w": torch.ones(4_000_000)}}, "{local.uri("ckpt")}"))
            while not await engine.exists("{local.uri("marker")}"):
                await asyncio.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)
            await save
        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            left = [t for t in threading.enumerate() if t.name == "aiockpt-operation"]
            for thread in left:
                thread.join(10)  # it ends by itself, soon
            print("interrupted", any(thread.is_alive() for thread in left))
    """)
    marker.join()
    assert said.split() == ["interrupted", "False"]
    assert local_endpoint.stats().uploads_open == 0
