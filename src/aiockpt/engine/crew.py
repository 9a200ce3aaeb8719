"""A crew: bounded workers that pull jobs from one queue, inside one task group.

The bound may change while the crew works (the concurrency controller moves it). Jobs run in lanes, which may have
bounds of their own: a job whose lane is full lets those of other lanes pass. What a lane takes grows with time, too,
and when another crew's job ends, so a crew that waits for one looks again now and then. The first failure cancels the
other workers of this crew only. Per-loop; every method but ``run`` and ``pause`` is synchronous and must be called on
the loop thread.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, Protocol, TypeVar
from weakref import WeakMethod

import anyio
import anyio.abc

from aiockpt.engine.clock import Clock, LoopClock
from aiockpt.errors import ClosedError

J = TypeVar("J")

#: Seconds after which a crew that waits for a full lane looks again: a throttled prefix doubles what it takes in one
#: second.
LOOK_S = 0.1


class Lanes(Protocol):
    """What bounds the lanes; shared by all crews that use them. See ``plan.prefixes.PrefixLimits``."""

    def admits(self, lane: str, waiting: int = 0, /) -> bool:
        """Whether another job may begin in a lane, if ``waiting`` others come first."""

    def begin(self, lane: str, /) -> None:
        """A job begins, or goes on."""

    def end(self, lane: str, /) -> None:
        """A job ends, or pauses."""


class _OpenLanes:
    """Lanes without bounds."""

    def admits(self, lane: str, waiting: int = 0, /) -> bool:  # noqa: ARG002  # Lanes's
        return True

    def begin(self, lane: str, /) -> None:
        pass

    def end(self, lane: str, /) -> None:
        pass


@dataclass(slots=True, eq=False)
class _Turn:
    """A job that has paused and wants to go on."""

    lane: str
    come: anyio.Event = field(default_factory=anyio.Event)


class Crew(Generic[J]):
    """Performs jobs, at most ``limit()`` at a time; those of one lane are taken in the order in which they were put.

    Args:
        limit: asked before each job starts; at least 1.
        perform: does one job; its first exception ends the crew.
        lanes: asked, too. A crew with nothing else to do starts a job all the same, so that it always gets on.
        lane_of: a job's lane.
        clock: what tells when to look again at a lane that was full; the loop's by default.
    """

    def __init__(
        self,
        limit: Callable[[], int],
        perform: Callable[[J], Awaitable[None]],
        lanes: Lanes | None = None,
        lane_of: Callable[[J], str] = lambda _: "",
        clock: Clock | None = None,
    ) -> None:
        self._limit = limit
        self._perform = perform
        self._lanes = lanes or _OpenLanes()
        self._lane_of = lane_of
        self._clock = clock or LoopClock()
        self._queue: deque[J] = deque()
        self._parked: dict[str, deque[J]] = {}  # jobs that others have passed, older than any in the queue
        self._working = 0
        self._running: Counter[str] = Counter()  # the same by lane
        self._paused: Counter[str] = Counter()
        self._turns: list[_Turn] = []
        self._group: anyio.abc.TaskGroup | None = None
        self._finish = anyio.Event()
        self._looks_again = False
        self._over = False

    def put(self, job: J) -> None:
        """Queue a job. After the crew has failed, jobs are dropped: the failure is what ``run`` reports."""
        if self._over:
            return
        self._queue.append(job)
        self._hire()

    def finish(self) -> None:
        """No more jobs will come from outside: ``run`` returns when what is queued is done."""
        self._finish.set()

    async def run(self) -> None:
        """Work until ``finish`` was called and everything is done.

        Raises:
            the first failure of a job, alone: its siblings are cancelled by it and have nothing to say.
        """
        if self._group is not None:
            raise ClosedError("a crew works once")
        try:
            async with anyio.create_task_group() as self._group:
                self._hire()
                await self._finish.wait()
        except BaseExceptionGroup as group:
            error = _first(group)
            raise error from error.__cause__
        finally:
            self._end()
            self._give_back()

    async def pause(self, lane: str, wait: Callable[[], Awaitable[None]]) -> None:
        """Called by a job that is under way: give its place in ``lane`` away, ``wait()``, and take a place again.

        While it pauses it counts in its lane only for jobs that have not begun, so that they do not overtake it.
        """
        turn = _Turn(lane)
        self._leave(lane)
        self._paused[lane] += 1
        self._hire()
        try:
            await wait()
            self._turns.append(turn)
            self._hire()
            await turn.come.wait()
        finally:
            if not turn.come.is_set():
                self._go_on(turn)

    def _end(self) -> None:
        self._over = True
        self._queue.clear()
        self._parked.clear()

    def _give_back(self) -> None:
        """End what was cancelled before it could begin: other crews share the lanes."""
        for lane in list(self._running.elements()):
            self._leave(lane)

    def _enter(self, lane: str) -> None:
        self._working += 1
        self._running[lane] += 1
        self._lanes.begin(lane)

    def _leave(self, lane: str) -> None:
        self._working -= 1
        self._running[lane] -= 1
        self._lanes.end(lane)

    def _go_on(self, turn: _Turn) -> None:
        if turn in self._turns:
            self._turns.remove(turn)
        self._paused[turn.lane] -= 1
        self._enter(turn.lane)
        turn.come.set()

    def _hire(self) -> None:
        """Let those that have paused go on, and start workers, while there is work and room for them."""
        self._let_go_on()
        while self._group is not None and (job := self._take()) is not None:
            self._group.start_soon(self._work, job)
        if (self._parked or self._turns) and not self._looks_again:
            self._looks_again = True
            self._clock.call_later(LOOK_S, partial(_look_again, WeakMethod(self._look)))

    def _look(self) -> None:
        self._looks_again = False
        self._hire()

    def _let_go_on(self) -> None:
        for turn in list(self._turns):
            if self._working < self._limit() and (not self._working or self._lanes.admits(turn.lane)):
                self._go_on(turn)

    def _take(self) -> J | None:
        """The next job that may begin, if any; it has its place then."""
        if self._working >= self._limit():
            return None
        job = self._next()
        if job is not None:
            self._enter(self._lane_of(job))
        return job

    def _next(self) -> J | None:
        for lane in self._parked:  # there are few: they are throttled
            if self._admits(lane):
                return self._unpark(lane)
        while self._queue:
            job = self._queue.popleft()
            lane = self._lane_of(job)
            if lane not in self._parked and self._admits(lane):
                return job
            self._parked.setdefault(lane, deque()).append(job)
        if self._parked and not self._working and not self._paused.total():
            return self._unpark(next(iter(self._parked)))
        return None

    def _admits(self, lane: str) -> bool:
        return self._lanes.admits(lane, self._paused[lane])

    def _unpark(self, lane: str) -> J:
        jobs = self._parked[lane]
        job = jobs.popleft()
        if not jobs:
            del self._parked[lane]
        return job

    async def _work(self, job: J | None) -> None:
        while job is not None:  # only the one at hand is kept: jobs may hold much memory
            try:
                await self._perform(job)
            except BaseException:
                self._end()
                raise
            finally:
                self._leave(self._lane_of(job))
            self._let_go_on()
            job = self._take()
            self._hire()


async def run_all(steps: Iterable[Callable[[], Awaitable[None]]], limit: int = 16) -> None:
    """Do all steps, at most ``limit`` at a time; the first failure cancels the others and is raised, alone."""
    crew: Crew[Callable[[], Awaitable[None]]] = Crew(lambda: limit, lambda step: step())
    for step in steps:
        crew.put(step)
    crew.finish()
    await crew.run()


def _look_again(look: WeakMethod[Callable[[], None]]) -> None:
    """A crew that has ended is not kept for it, nor is what its jobs hold."""
    if (alive := look()) is not None:
        alive()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
