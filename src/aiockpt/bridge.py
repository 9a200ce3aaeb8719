"""The bridge from threads to the event loop: one background loop thread per process.

It starts on first use and stops at interpreter exit. What lives on the loop (engines: pools, clients) is leased: opened
once per key, shared by everyone who holds a lease, and closed a while after the last one was given back. A forked child
starts with no bridge and builds its own. This room knows nothing of what it hosts.

Invariants: user code never runs on the loop thread; a blocking call from the loop thread is refused, not deadlocked;
when a blocking call ends, by result, error or Ctrl-C, the coroutine that it ran has ended too.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from typing import Any, Generic, TypeVar, cast

import uvloop

from aiockpt.errors import ClosedError, WrongThreadError

T = TypeVar("T")

#: Seconds that a resource stays open after its last lease: a warm engine saves the next call 0.1 s of client building,
#: an idle one holds a few connections that the server will close anyway.
LINGER_S = 60.0

#: Longest wait for the loop thread to wind up at exit: uploads are aborted in that time.
EXIT_TIMEOUT_S = 10.0


class Call(Generic[T]):
    """A coroutine that runs on the loop thread: wait for it, or cancel it."""

    def __init__(self, bridge: Bridge, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._bridge = bridge
        self._work = work
        self._outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._task: asyncio.Task[T]
        bridge.call_soon(self._begin)

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._work())
        self._task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self._outcome.cancel()
            self._outcome.set_running_or_notify_cancel()
        elif (error := task.exception()) is not None:
            self._outcome.set_exception(error)
        else:
            self._outcome.set_result(task.result())

    def result(self) -> T:
        """Wait for the outcome; an interruption of the wait (Ctrl-C) cancels the work and waits for its end."""
        try:
            return self._outcome.result()
        except concurrent.futures.CancelledError:
            raise ClosedError("the call was cancelled, or aiockpt's loop thread is stopping") from None
        except BaseException:
            if not self._outcome.done():
                self.cancel()
                concurrent.futures.wait([self._outcome], EXIT_TIMEOUT_S)
            raise

    @property
    def done(self) -> bool:
        """Whether the work has ended, however."""
        return self._outcome.done()

    def cancel(self) -> None:
        """Cancel the work; ``wait`` tells when it has ended."""
        self._bridge.call_soon(self._cancel_task)  # runs after _begin, which was called soon before it

    def _cancel_task(self) -> None:
        self._task.cancel()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the work has ended, however; False if it has not within ``timeout_s``."""
        return bool(concurrent.futures.wait([self._outcome], timeout_s).done)


class _Resource:
    """Something open on the loop, in a task of its own so that its scopes are entered and left in one task."""

    def __init__(self, factory: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        self.leases = 0
        self.closing: asyncio.TimerHandle | None = None
        self._value: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._close = asyncio.Event()
        self.task = asyncio.get_running_loop().create_task(self._host(factory))

    async def _host(self, factory: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        try:
            async with factory() as value:
                self._value.set_result(value)
                await self._close.wait()
        except Exception as error:
            if self._value.done():
                raise
            self._value.set_exception(error)

    async def value(self) -> Any:
        return await asyncio.shield(self._value)

    def close(self) -> None:
        self._close.set()


class Bridge:
    """The loop thread and what is leased on it. Get the process's own with ``get_bridge``."""

    def __init__(self) -> None:
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event
        self._resources: dict[Hashable, _Resource] = {}
        self._thread = threading.Thread(target=self._run, name="aiockpt-loop", daemon=True)
        self._thread.start()
        self._started.wait()

    def start(self, work: Callable[[], Coroutine[Any, Any, T]]) -> Call[T]:
        """Start ``work()`` on the loop thread, without waiting."""
        return Call(self, work)

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run ``work()`` on the loop thread and wait for its result.

        Raises:
            WrongThreadError: called on the loop thread.
            ClosedError: the loop thread has stopped.
        """
        self._refuse_own_thread()
        return self.start(work).result()

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        """Have ``callback(*args)`` called on the loop thread, which it must not block."""
        try:
            assert self._loop is not None
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError as exc:
            raise ClosedError("aiockpt's loop thread has stopped: the interpreter is shutting down") from exc

    @asynccontextmanager
    async def hold(self, key: Hashable, factory: Callable[[], AbstractAsyncContextManager[T]]) -> AsyncIterator[T]:
        """As ``lease``, for work that already runs on the loop thread."""
        value = await self._acquire(key, factory)
        try:
            yield value
        finally:
            self._give_back(key)

    @contextmanager
    def lease(self, key: Hashable, factory: Callable[[], AbstractAsyncContextManager[T]]) -> Iterator[T]:
        """Hold the resource for ``key``, opening it with ``factory()`` on the loop if nobody has.

        What is yielded lives on the loop thread: use it through ``run`` and ``start`` only.
        """
        value = self.run(lambda: self._acquire(key, factory))
        try:
            yield value
        finally:
            with suppress(ClosedError):
                self.call_soon(self._give_back, key)

    def close(self) -> None:
        """Cancel what runs, close what is leased, stop the thread. Idempotent; callable from any other thread."""
        self._refuse_own_thread()
        if self._thread.is_alive():
            with suppress(ClosedError):
                self.call_soon(self._stop.set)
            self._thread.join(EXIT_TIMEOUT_S)

    def _refuse_own_thread(self) -> None:
        if threading.current_thread() is self._thread:
            raise WrongThreadError(
                "a blocking call on aiockpt's own loop thread would wait for itself: call it from another thread"
            )

    # ---- on the loop thread

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._started.set()
        await self._stop.wait()
        hosts = {resource.task for resource in self._resources.values()}
        others = asyncio.all_tasks() - hosts - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for resource in self._resources.values():
            resource.close()
        await asyncio.gather(*hosts, return_exceptions=True)

    async def _acquire(self, key: Hashable, factory: Callable[[], AbstractAsyncContextManager[T]]) -> T:
        resource = self._resources.get(key)
        if resource is None or resource.task.done():
            resource = self._resources[key] = _Resource(factory)
        resource.leases += 1
        if resource.closing is not None:
            resource.closing.cancel()
            resource.closing = None
        try:
            return cast("T", await resource.value())
        except BaseException:
            self._give_back(key)
            raise

    def _give_back(self, key: Hashable) -> None:
        resource = self._resources[key]
        resource.leases -= 1
        if not resource.leases:
            resource.closing = asyncio.get_running_loop().call_later(LINGER_S, self._expire, key, resource)

    def _expire(self, key: Hashable, resource: _Resource) -> None:
        if not resource.leases and self._resources.get(key) is resource:
            del self._resources[key]
            resource.close()


_lock = threading.Lock()
_bridge: Bridge | None = None
_left_to_parent: list[Bridge] = []


def get_bridge() -> Bridge:
    """This process's bridge, started if need be."""
    global _bridge  # noqa: PLW0603  # one per process is the point
    with _lock:
        if _bridge is None:
            _bridge = Bridge()
        return _bridge


def _stop_at_exit() -> None:
    if _bridge is not None:
        _bridge.close()


def _forget_after_fork() -> None:
    """In a forked child there is no loop thread, and the lock may have been held by a thread that is not there.

    The parent's bridge is kept from being collected: closing its loop here would take the parent's sockets out of the
    epoll set, which the two processes share.
    """
    global _bridge, _lock  # noqa: PLW0603  # see get_bridge
    _lock = threading.Lock()
    if _bridge is not None:
        _left_to_parent.append(_bridge)
        _bridge = None


atexit.register(_stop_at_exit)
os.register_at_fork(after_in_child=_forget_after_fork)
