"""A bridge from threads to an event loop: one background loop thread, and what is leased on it.

What lives on the loop (engines: pools, clients) is leased: opened once per key, shared by everyone who holds a lease,
and closed a while after the last one was given back. This room knows nothing of what it hosts.

Invariants: user code never runs on a loop thread; a blocking call from a loop thread is refused, not deadlocked; when a
blocking call ends, by result, error or Ctrl-C, the coroutine that it ran has ended too.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from typing import Any, TypeVar

from aiockpt.bridge.calls import FORKED, STOPPED, WIND_UP_TIMEOUT_S, Call
from aiockpt.bridge.leases import Leases
from aiockpt.bridge.priority import give_way
from aiockpt.bridge.threads import LoopThread, OwnLoop, refuse_loop_thread
from aiockpt.errors import ClosedError
from aiockpt.scope import current_scope

T = TypeVar("T")


class Bridge:
    """A loop thread and what is leased on it. Get the process's own with ``get_bridge``.

    Args:
        name: of the thread, behind ``aiockpt-``.
        nice: how much the thread gives way to others; see ``give_way``.
    """

    def __init__(self, name: str, nice: int = 0) -> None:
        self._loop = OwnLoop()
        self._stop = asyncio.Event()
        self._leases = Leases()
        self._calls: set[Call[Any]] = set()  # those that have not ended
        self._forked = False
        self._cpu_clock: int | None = None
        self._nice = nice
        self._thread = LoopThread(name, self._run)
        self._thread.start()

    def start(self, work: Callable[[], Coroutine[Any, Any, T]], on_end: Callable[[], object] = lambda: None) -> Call[T]:
        """Start ``work()`` on the loop thread, without waiting; it belongs to the scope that this thread has entered.

        ``on_end`` is called on the loop thread once the work has ended, before its outcome is known, also if it was
        cancelled before it began.
        """
        return Call(self, work, on_end, current_scope())

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run ``work()`` on the loop thread and wait for its result.

        Raises:
            WrongThreadError: called on a loop thread.
            ClosedError: the loop thread has stopped.
        """
        refuse_loop_thread()
        return self.start(work).result()

    async def perform(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run ``work()`` on the loop thread for a task of another loop, which it serves: it belongs to no scope.

        When this has ended, by result, error or cancellation, the work has ended too.

        Raises:
            ClosedError: the loop thread has stopped.
        """
        return await Call(self, work).ended()

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        """Have ``callback(*args)`` called on the loop thread, which it must not block.

        Raises:
            ClosedError: the loop thread has stopped, or is that of the process that this one was forked from.
        """
        if self._forked:
            raise ClosedError(FORKED)
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError as exc:
            raise ClosedError(STOPPED) from exc

    @asynccontextmanager
    async def hold(self, key: Hashable, factory: Callable[[], AbstractAsyncContextManager[T]]) -> AsyncIterator[T]:
        """As ``lease``, for work that already runs on the loop thread."""
        resource = await self._leases.acquire(key, factory)
        try:
            yield resource.value
        finally:
            self._leases.give_back(key, resource)

    @contextmanager
    def lease(self, key: Hashable, factory: Callable[[], AbstractAsyncContextManager[T]]) -> Iterator[T]:
        """Hold the resource for ``key``, opening it with ``factory()`` on the loop if nobody has.

        What is yielded lives on the loop thread: use it through ``run`` and ``start`` only.
        """
        resource = self.run(lambda: self._leases.acquire(key, factory))
        try:
            yield resource.value
        finally:
            with suppress(ClosedError):
                self.call_soon(self._leases.give_back, key, resource)

    def close(self) -> None:
        """Cancel what runs, close what is leased, stop the thread. Idempotent; callable from any other thread."""
        refuse_loop_thread()
        if self._thread.is_alive():
            with suppress(ClosedError):
                self.call_soon(self._stop.set)
            self._thread.join(WIND_UP_TIMEOUT_S)

    @property
    def cpu_s(self) -> float:
        """CPU seconds of the loop thread so far; 0 before it runs, and on macOS, which cannot tell."""
        with suppress(OSError):  # the thread is gone
            return time.clock_gettime(self._cpu_clock) if self._cpu_clock is not None else 0.0
        return 0.0

    @property
    def is_stopping(self) -> bool:
        """Whether the loop thread winds up."""
        return self._stop.is_set()

    def expect(self, call: Call[Any]) -> None:
        """Have a call begun, and remember it until ``forget``, to end its wait should the loop go before it.

        Raises:
            ClosedError: as ``call_soon``.
        """
        self._calls.add(call)
        try:
            self.call_soon(call.begin)
        except ClosedError:
            call.lose()
            raise

    def forget(self, call: Call[Any]) -> None:
        """The call has ended."""
        self._calls.discard(call)

    def forget_in_child(self) -> None:
        """In a forked child: the loop is the parent's, so all calls are lost and no other can be made."""
        self._forked = True
        for call in list(self._calls):
            call.lose_in_child()

    # ---- on the loop thread

    def _run(self) -> None:
        give_way(self._nice)
        if hasattr(time, "pthread_getcpuclockid"):
            self._cpu_clock = time.pthread_getcpuclockid(threading.get_ident())
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._main())
        finally:
            for call in list(self._calls):  # those that the loop ended without
                call.lose()

    async def _main(self) -> None:
        await self._stop.wait()
        others = asyncio.all_tasks() - self._leases.tasks - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._leases.aclose()
