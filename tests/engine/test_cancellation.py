"""Cancellation at every await: an operation is cancelled at each step that any of its tasks makes, in turn.

Whatever was under way has ended then: no task, no upload, no socket, no byte into the caller's memory afterwards, and
the engine is as good as before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

import pytest

from aiockpt.engine.download import Read
from aiockpt.engine.engine import LoopEngine
from aiockpt.errors import NotFound
from aiockpt.model import ByteRange, MiB, ObjectId
from aiockpt.testing import LocalEndpoint

#: More steps than any of the operations here makes.
MANY_STEPS = 2000

DATA = bytes(range(256)) * (6 * MiB // 256)


Work = Callable[[], Coroutine[Any, Any, Any]]


class Steps:
    """A task factory that counts the steps of all tasks, and cancels ``victim`` at step ``fatal``."""

    def __init__(self, fatal: int) -> None:
        self.victim: asyncio.Task[Any] | None = None
        self._fatal = fatal
        self.count = 0

    def __call__(self, loop: asyncio.AbstractEventLoop, work: Any, **kwargs: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(self._counted(work), loop=loop, **kwargs)
        task.add_done_callback(lambda _: work.close())  # it may have been cancelled before it began
        return task

    async def _counted(self, work: Coroutine[Any, Any, Any]) -> Any:
        return await _Stepwise(work, self._step)

    def _step(self) -> None:
        self.count += 1
        if self.count == self._fatal and self.victim is not None:
            self.victim.cancel()


class _Stepwise:
    """Awaits ``work``, and says so before each of its steps."""

    def __init__(self, work: Coroutine[Any, Any, Any], on_step: Callable[[], None]) -> None:
        self._work = work
        self._on_step = on_step

    def __await__(self) -> Generator[Any, Any, Any]:
        raised: BaseException | None = None
        while True:
            self._on_step()
            try:
                awaited = self._work.send(None) if raised is None else self._work.throw(raised)
            except StopIteration as end:
                return end.value
            raised = None
            try:
                yield awaited
            except BaseException as error:  # noqa: BLE001  # the work's, cancellation above all
                raised = error


async def cancelled_at(step: int, work: Work) -> tuple[bool, bool]:
    """Whether the work came to this step, and whether it was cancelled then."""
    loop, steps = asyncio.get_running_loop(), Steps(step)
    loop.set_task_factory(steps)
    try:
        steps.victim = asyncio.ensure_future(work())
        await asyncio.wait([steps.victim])
    finally:
        loop.set_task_factory(None)
    return steps.count >= step, steps.victim.cancelled()


async def at_every_step(work: Work, check: Callable[[bool], Awaitable[None]]) -> int:
    """How many steps there were; ``check`` is told after each whether the work was cancelled."""
    before = asyncio.all_tasks()
    for step in range(1, MANY_STEPS):
        reached, cancelled = await cancelled_at(step, work)
        assert asyncio.all_tasks() == before, f"step {step}"
        await check(cancelled)
        if not reached:
            return step
    raise AssertionError("it never ended")


@pytest.fixture
async def source(engine: LoopEngine, local_bucket: str) -> ObjectId:
    target = ObjectId(local_bucket, "source")
    await engine.put(target, [DATA])
    return target


async def test_put(engine: LoopEngine, local_endpoint: LocalEndpoint, source: ObjectId) -> None:
    target = ObjectId(source.bucket, "target")
    open_before = local_endpoint.stats().uploads_open

    async def check(cancelled: bool) -> None:
        assert local_endpoint.stats().uploads_open == open_before
        try:
            assert (await engine.head(target)).size == len(DATA)
            await engine.delete(target)
        except NotFound:
            assert cancelled

    assert await at_every_step(lambda: engine.put(target, [DATA]), check) > 5


async def test_fetch_into(engine: LoopEngine, source: ObjectId) -> None:
    memory = bytearray(len(DATA))

    def fetch() -> Coroutine[Any, Any, Any]:
        memory[:] = bytes(len(memory))
        spans = [ByteRange(start, start + MiB) for start in range(0, len(DATA), MiB)]
        return engine.fetch_into([Read(source, span, memoryview(memory)[span.start : span.end]) for span in spans])

    async def check(cancelled: bool) -> None:
        if not cancelled:
            assert memory == DATA
        landed = bytes(memory)
        assert (await engine.head(source)).size == len(DATA)  # another round trip: who writes late, writes now
        assert memory == landed

    assert await at_every_step(fetch, check) > 5


async def test_get_and_list(engine: LoopEngine, source: ObjectId) -> None:
    async def both() -> None:
        assert await engine.get(source) == DATA
        assert [row async for row in engine.list_objects(source)]

    async def check(_: bool) -> None:
        pass

    assert await at_every_step(both, check) > 5
