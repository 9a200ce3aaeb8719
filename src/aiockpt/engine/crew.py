"""A crew: bounded workers that pull jobs from one queue, inside one task group.

The bound may change while the crew works (the concurrency controller moves it). The first failure cancels the other
workers of this crew only. Per-loop; every method but ``run`` is synchronous and must be called on the loop thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, TypeVar

import anyio
import anyio.abc

from aiockpt.errors import ClosedError

J = TypeVar("J")


class Crew(Generic[J]):
    """Performs jobs, at most ``limit()`` at a time, in the order in which they were put.

    Args:
        limit: asked before each job starts.
        perform: does one job; its first exception ends the crew.
    """

    def __init__(self, limit: Callable[[], int], perform: Callable[[J], Awaitable[None]]) -> None:
        self._limit = limit
        self._perform = perform
        self._queue: deque[J] = deque()
        self._working = 0
        self._group: anyio.abc.TaskGroup | None = None
        self._finish = anyio.Event()
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
            self._over = True
            self._queue.clear()

    def _hire(self) -> None:
        """Start workers while there is work and room for them."""
        if self._group is None:
            return
        missing = min(len(self._queue), self._limit() - self._working)
        for _ in range(missing):
            self._working += 1
            self._group.start_soon(self._work)

    async def _work(self) -> None:
        try:
            while self._queue and self._working <= self._limit():
                await self._perform(self._queue.popleft())
                self._hire()
        except BaseException:
            self._over = True
            self._queue.clear()
            raise
        finally:
            self._working -= 1


async def run_all(steps: Iterable[Callable[[], Awaitable[None]]], limit: int = 16) -> None:
    """Do all steps, at most ``limit`` at a time; the first failure cancels the others and is raised, alone."""
    crew: Crew[Callable[[], Awaitable[None]]] = Crew(lambda: limit, lambda step: step())
    for step in steps:
        crew.put(step)
    crew.finish()
    await crew.run()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
