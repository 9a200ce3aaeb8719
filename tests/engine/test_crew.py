from __future__ import annotations

import asyncio
import gc
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from weakref import ref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiockpt.engine.crew import LOOK_S, Crew, run_all
from aiockpt.errors import ClosedError
from engine.virtual_clock import VirtualClock

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


# ---- lanes


class Bounds:
    """Lanes with bounds that a test sets; it checks that they hold."""

    def __init__(self, **bounds: int) -> None:
        self.bounds = bounds
        self.running: Counter[str] = Counter()
        self.peaks: Counter[str] = Counter()

    def admits(self, lane: str, waiting: int = 0, /) -> bool:
        return self.running[lane] + waiting < self.bounds.get(lane, 1_000)

    def begin(self, lane: str, /) -> None:
        self.running[lane] += 1
        self.peaks[lane] = max(self.peaks[lane], self.running[lane])

    def end(self, lane: str, /) -> None:
        self.running[lane] -= 1
        assert self.running[lane] >= 0


def lane_of(job: str) -> str:
    return job[0]


@given(
    jobs=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.integers(0, 2)), max_size=40),
    limit=st.integers(1, 6),
    bounds=st.tuples(st.integers(1, 3), st.integers(1, 6)),
)
def test_bounds_hold_and_all_is_done_whoever_pauses(
    jobs: list[tuple[str, int, int]], limit: int, bounds: tuple[int, int]
) -> None:
    async def scene() -> None:
        lanes = Bounds(a=bounds[0], b=bounds[1])
        begun: defaultdict[str, list[int]] = defaultdict(list)
        done: list[int] = []
        running = 0

        async def perform(job: int) -> None:
            nonlocal running
            lane, steps, pauses = jobs[job]
            begun[lane].append(job)
            running += 1
            for _ in range(pauses):
                running -= 1
                await crew.pause(lane, lambda: asyncio.sleep(0))
                running += 1
            assert running <= limit
            for _ in range(steps):
                await asyncio.sleep(0)
                assert running <= limit
            running -= 1
            done.append(job)

        crew: Crew[int] = Crew(lambda: limit, perform, lanes, lambda job: jobs[job][0])
        for job in range(len(jobs)):
            crew.put(job)
        crew.finish()
        await crew.run()
        assert sorted(done) == list(range(len(jobs)))
        assert all(begun[lane] == sorted(begun[lane]) for lane, bound in lanes.bounds.items() if bound == 1)
        assert all(lanes.peaks[lane] <= bound for lane, bound in lanes.bounds.items())
        assert not lanes.running.total()

    asyncio.run(scene())


async def test_a_full_lane_lets_others_pass() -> None:
    lanes = Bounds(a=1)
    go = asyncio.Event()
    done: list[str] = []

    async def perform(job: str) -> None:
        if lane_of(job) == "a":
            await go.wait()
        done.append(job)

    crew = Crew(lambda: 3, perform, lanes, lane_of)
    for job in ("a1", "a2", "a3", "b1", "b2", "a4", "b3"):
        crew.put(job)
    crew.finish()
    task = asyncio.ensure_future(crew.run())
    while len(done) < 3:  # noqa: ASYNC110  # what others do sets no event
        await asyncio.sleep(0)
    assert sorted(done) == ["b1", "b2", "b3"]
    go.set()
    await task
    assert done[3:] == ["a1", "a2", "a3", "a4"]


async def test_a_job_that_pauses_gives_its_place_to_another_lane_and_not_to_its_own() -> None:
    lanes = Bounds(a=1)
    go = asyncio.Event()
    done: list[str] = []

    async def wait() -> None:
        await go.wait()

    async def perform(job: str) -> None:
        if job == "a1":
            await crew.pause("a", wait)
        done.append(job)
        if job == "b2":
            go.set()

    crew = Crew(lambda: 1, perform, lanes, lane_of)
    for job in ("a1", "a2", "b1", "b2"):
        crew.put(job)
    crew.finish()
    await crew.run()
    assert done == ["b1", "b2", "a1", "a2"]


async def test_who_comes_back_goes_first() -> None:
    done: list[str] = []
    waited = asyncio.Event()

    async def wait() -> None:
        waited.set()

    async def perform(job: str) -> None:
        if job == "a":
            await crew.pause("a", wait)
        else:
            await waited.wait()
            await asyncio.sleep(0.001)
        done.append(job)

    crew = Crew(lambda: 1, perform, Bounds(), lane_of)
    for job in ("a", "b", "c", "d"):
        crew.put(job)
    crew.finish()
    await crew.run()
    assert done == ["b", "a", "c", "d"]


async def test_crews_that_share_a_full_lane_all_get_on() -> None:
    lanes = Bounds(a=1)
    done: list[str] = []

    async def perform(job: str) -> None:
        await asyncio.sleep(0)
        done.append(job)

    crews = [Crew(lambda: 4, perform, lanes, lane_of) for _ in range(3)]
    for crew in crews:
        for number in range(5):
            crew.put(f"a{number}")
        crew.finish()
    await asyncio.gather(*(crew.run() for crew in crews))
    assert len(done) == 15
    assert lanes.peaks["a"] <= len(crews)  # each may have one that nobody else lets begin
    assert not lanes.running.total()


@pytest.mark.parametrize("pauses", [False, True], ids=["a job that has not begun", "one that has paused"])
async def test_a_lane_that_grows_is_seen_though_no_job_ends(pauses: bool) -> None:
    """It grows with time; a throttled crew's only request stalled for a minute, and nothing else was sent meanwhile."""
    lanes = Bounds(a=2 if pauses else 1)
    clock = VirtualClock()
    stalls = asyncio.Event()
    done: list[str] = []

    async def perform(job: str) -> None:
        if job == "a1":
            await stalls.wait()
        elif pauses:
            lanes.bounds["a"] = 1
            await crew.pause("a", partial(asyncio.sleep, 0))
        done.append(job)

    crew = Crew(lambda: 4, perform, lanes, lane_of, clock)
    crew.put("a1")
    crew.put("a2")
    crew.finish()
    task = asyncio.ensure_future(crew.run())
    for _ in range(20):
        await asyncio.sleep(0)
    await clock.work(LOOK_S)
    await clock.work(LOOK_S)
    assert done == []
    lanes.bounds["a"] = 2
    await clock.work(LOOK_S)
    for _ in range(20):
        await asyncio.sleep(0)
    assert done == ["a2"]
    stalls.set()
    await task
    assert done == ["a2", "a1"]
    assert not lanes.running.total()


async def test_a_crew_that_has_ended_is_not_kept_until_it_would_look_again() -> None:
    crew = Crew(lambda: 4, partial(asyncio.sleep, 0), Bounds(a=1), lane_of)
    for number in range(3):
        crew.put(f"a{number}")
    crew.finish()
    await crew.run()
    gone = ref(crew)
    gc.disable()
    try:
        del crew
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("paused", [False, True])
async def test_a_cancelled_crew_gives_its_places_back(paused: bool) -> None:
    """Also those of jobs that were cancelled before they began."""
    lanes = Bounds()
    forever = asyncio.Event()

    async def wait() -> None:
        await forever.wait()

    async def perform(_: str) -> None:
        if paused:
            await crew.pause("a", wait)
        await forever.wait()

    crew = Crew(lambda: 4, perform, lanes, lane_of)
    task = asyncio.ensure_future(crew.run())
    await asyncio.sleep(0)
    for number in range(10):
        crew.put(f"a{number}")
    if paused:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not lanes.running.total()


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


async def test_a_worker_keeps_only_the_job_at_hand() -> None:
    """Jobs may hold much memory: that of those that are done is free, however long the worker goes on."""
    first_is_done = asyncio.Event()

    class Work:
        async def do(self) -> None:
            if not first_is_done.is_set():
                first_is_done.set()
                return
            gc.collect()
            alive.append(first() is not None)

    alive: list[bool] = []
    crew: Crew[Work] = Crew(lambda: 1, lambda work: work.do())
    works = [Work(), Work()]
    first = ref(works[0])
    while works:
        crew.put(works.pop(0))
    crew.finish()
    await crew.run()
    assert alive == [False]
