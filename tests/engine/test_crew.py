from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiockpt.engine.crew import Crew, run_all
from aiockpt.errors import ClosedError

Step = Callable[[], Awaitable[None]]


def crew_of(limit: Callable[[], int]) -> Crew[Step]:
    return Crew(limit, lambda step: step())


@given(jobs=st.lists(st.integers(0, 3), max_size=30), limits=st.lists(st.integers(1, 6), min_size=1, max_size=8))
def test_every_job_is_done_within_the_limit(jobs: list[int], limits: list[int]) -> None:
    """Whatever the limit does meanwhile; a lower one holds for jobs that start after it."""

    async def scene() -> None:
        done: list[int] = []
        running = 0
        limit = limits[0]
        turn = 0

        async def perform(job: int) -> None:
            nonlocal running, limit, turn
            running += 1
            assert running <= max(limits)
            for _ in range(jobs[job]):
                await asyncio.sleep(0)
            turn += 1
            limit = limits[turn % len(limits)]
            running -= 1
            done.append(job)

        crew: Crew[int] = Crew(lambda: limit, perform)
        for job in range(len(jobs)):
            crew.put(job)
        crew.finish()
        await crew.run()
        assert sorted(done) == list(range(len(jobs)))

    asyncio.run(scene())


async def test_jobs_start_in_order() -> None:
    started: list[int] = []

    async def perform(job: int) -> None:
        started.append(job)
        await asyncio.sleep(0)

    crew: Crew[int] = Crew(lambda: 3, perform)
    for job in range(10):
        crew.put(job)
    crew.finish()
    await crew.run()
    assert started == list(range(10))


async def test_a_lowered_limit_holds_for_what_starts_then() -> None:
    limit, running, peak_after = 5, 0, 0
    lowered = False

    async def perform(_: int) -> None:
        nonlocal running, limit, lowered, peak_after
        running += 1
        if lowered:
            peak_after = max(peak_after, running)
        await asyncio.sleep(0)
        if not lowered:
            limit, lowered = 1, True
        running -= 1

    crew: Crew[int] = Crew(lambda: limit, perform)
    for job in range(30):
        crew.put(job)
    crew.finish()
    await crew.run()
    assert peak_after == 1


async def test_a_raised_limit_hires() -> None:
    limit, running, peak = 1, 0, 0

    async def perform(_: int) -> None:
        nonlocal running, peak, limit
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0)
        limit = 4
        running -= 1

    crew: Crew[int] = Crew(lambda: limit, perform)
    for job in range(20):
        crew.put(job)
    crew.finish()
    await crew.run()
    assert peak == 4


async def test_jobs_may_put_jobs() -> None:
    done = []

    async def perform(depth: int) -> None:
        done.append(depth)
        if depth:
            crew.put(depth - 1)

    crew: Crew[int] = Crew(lambda: 2, perform)
    task = asyncio.ensure_future(crew.run())
    await asyncio.sleep(0)
    crew.put(5)
    crew.finish()
    await task
    assert done == [5, 4, 3, 2, 1, 0]


async def test_a_failure_cancels_the_siblings_and_is_raised_alone_with_its_cause() -> None:
    cancelled = 0
    all_there = asyncio.Event()

    async def sibling() -> None:
        nonlocal cancelled
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled += 1
            raise

    async def fail() -> None:
        await all_there.wait()
        raise LookupError("first") from KeyError("cause")

    crew = crew_of(lambda: 4)
    for step in (sibling, sibling, fail, sibling):
        crew.put(step)
    never_run: list[int] = []

    async def late() -> None:
        never_run.append(1)

    crew.put(late)
    task = asyncio.ensure_future(crew.run())
    await asyncio.sleep(0.01)
    all_there.set()
    with pytest.raises(LookupError, match="first") as failure:
        await task
    assert isinstance(failure.value.__cause__, KeyError)
    assert cancelled == 3
    crew.put(late)  # dropped
    assert not never_run


async def test_cancellation_passes() -> None:
    ended: list[int] = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(1)

    crew = crew_of(lambda: 2)
    crew.put(wait)
    crew.put(wait)
    task = asyncio.ensure_future(crew.run())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [1, 1]


async def test_a_crew_works_once() -> None:
    crew = crew_of(lambda: 1)
    crew.finish()
    await crew.run()
    with pytest.raises(ClosedError):
        await crew.run()


async def test_run_all() -> None:
    done: list[int] = []

    async def step(number: int) -> None:
        await asyncio.sleep(0)
        done.append(number)

    await run_all([partial(step, number) for number in range(40)], limit=7)
    assert sorted(done) == list(range(40))
    await run_all([])


async def test_no_job_begins_once_one_has_failed() -> None:
    begun: list[str] = []

    async def perform(job: str) -> None:
        begun.append(job)
        if job == "fails":
            raise ValueError(job)
        try:
            await asyncio.sleep(60)
        finally:
            crew.put("again")

    crew: Crew[str] = Crew(lambda: 4, perform)
    crew.put("waits")
    crew.put("fails")
    crew.finish()
    with pytest.raises(ValueError, match="fails"):
        await crew.run()
    assert begun == ["waits", "fails"]
