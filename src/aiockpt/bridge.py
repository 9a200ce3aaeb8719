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
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from typing import Any, Generic, TypeVar

import uvloop

from aiockpt.errors import ClosedError, WrongThreadError
from aiockpt.scope import current_scope

T = TypeVar("T")

_STOPPED = "aiockpt's loop thread has stopped: the interpreter is shutting down"
_FORKED = "this process was forked while the call was under way, which goes on in the parent only: call again"

#: Seconds that a resource stays open after its last lease: a warm engine saves the next call 0.1 s of client building,
#: an idle one holds a few connections that the server will close anyway.
LINGER_S = 60.0

#: Longest wait for the loop thread to wind up at exit: uploads are aborted in that time.
EXIT_TIMEOUT_S = 10.0


class Call(Generic[T]):
    """A coroutine that runs on the loop thread: wait for it, or cancel it. Belongs to its thread's scope.

    Attributes:
        outcome: what waits for it; not to be cancelled itself.
    """

    def __init__(
        self, bridge: Bridge, work: Callable[[], Coroutine[Any, Any, T]], on_end: Callable[[], object]
    ) -> None:
        self._bridge = bridge
        self._work = work
        self._on_end = on_end
        self.outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._task: asyncio.Task[T] | None = None
        self._unwanted = False
        self._scope = current_scope()
        if self._scope is not None:
            self._scope.add(self)
        bridge.expect(self)

    def begin(self) -> None:
        """Start the work, unless nobody would see it through; on the loop thread."""
        if self._bridge.is_stopping:
            self.lose()
            return
        self._task = asyncio.get_running_loop().create_task(self._perform())
        self._task.add_done_callback(self._end)
        if self._unwanted:
            self._task.cancel()

    async def _perform(self) -> T:
        return await self._work()  # called in here, so that whatever it raises is an outcome

    def _end(self, task: asyncio.Task[T]) -> None:
        self._leave()
        if task.cancelled():
            self.outcome.cancel()
            self.outcome.set_running_or_notify_cancel()
        elif (error := task.exception()) is not None:
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(task.result())

    def result(self) -> T:
        """Wait for the outcome; an interruption of the wait (Ctrl-C) cancels the work and waits for its end.

        Raises:
            WrongThreadError: called on the loop thread.
            ClosedError: the work was cancelled, or there is no loop thread any more.
        """
        self._bridge.refuse_own_thread()
        try:
            return self.outcome.result()
        except concurrent.futures.CancelledError:
            raise ClosedError("the call was cancelled, or aiockpt's loop thread is stopping") from None
        except BaseException:
            if not self.outcome.done():
                self.cancel()
                concurrent.futures.wait([self.outcome], EXIT_TIMEOUT_S)
            raise

    @property
    def done(self) -> bool:
        """Whether the work has ended, however."""
        return self.outcome.done()

    def cancel(self) -> None:
        """Cancel the work; ``wait`` tells when it has ended."""
        with suppress(ClosedError):  # no loop, no work
            self._bridge.call_soon(self._cancel_task)

    def _cancel_task(self) -> None:
        if self._task is not None and not self._unwanted:  # a second time would cut its winding up short
            self._task.cancel()
        self._unwanted = True

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the work has ended, however; False if it has not within ``timeout_s``.

        On the loop thread, where the garbage collector may have brought us, it does not wait.
        """
        if self._bridge.is_own_thread:
            return self.done
        return bool(concurrent.futures.wait([self.outcome], timeout_s).done)

    def lose(self) -> None:
        """There is no loop to bring an outcome: let whoever waits go on."""
        self._leave()
        if not self.outcome.done():
            self.outcome.set_exception(ClosedError(_STOPPED))

    def lose_in_child(self) -> None:
        """Likewise after a fork; the lock of the former outcome may be held by a thread that is not there."""
        self.outcome = concurrent.futures.Future()
        self.outcome.set_exception(ClosedError(_FORKED))

    def _leave(self) -> None:
        """It has ended: nobody needs to remember it, and who waits for what it would bring is told."""
        self._bridge.forget(self)
        if self._scope is not None:
            self._scope.discard(self)
        self._on_end()


class _OwnThreads(concurrent.futures.Executor):
    """The loop's default executor: a thread for each of the few things that aiobotocore does in one.

    The standard one refuses work once the main thread has ended. A save that ``dcp.async_save`` began goes on then,
    since the interpreter waits for it, and must be able to build its client.
    """

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[T]:
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def work() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as error:  # noqa: BLE001  # the future's
                    future.set_exception(error)

        threading.Thread(target=work, name="aiockpt-work", daemon=True).start()
        return future


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
            self._value.exception()  # retrieved: those who waited for it may have been cancelled

    async def opened(self) -> None:
        await asyncio.shield(self._value)

    @property
    def value(self) -> Any:
        return self._value.result()

    def close(self) -> None:
        self._close.set()


class Bridge:
    """The loop thread and what is leased on it. Get the process's own with ``get_bridge``."""

    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._loop.set_default_executor(_OwnThreads())
        self._stop = asyncio.Event()
        self._resources: dict[Hashable, _Resource] = {}
        self._calls: set[Call[Any]] = set()  # those that have not ended
        self._forked = False
        self._cpu_clock: int | None = None
        self._thread = threading.Thread(target=self._run, name="aiockpt-loop", daemon=True)
        self._thread.start()

    def start(self, work: Callable[[], Coroutine[Any, Any, T]], on_end: Callable[[], object] = lambda: None) -> Call[T]:
        """Start ``work()`` on the loop thread, without waiting.

        ``on_end`` is called on the loop thread once the work has ended, before its outcome is known, also if it was
        cancelled before it began.
        """
        return Call(self, work, on_end)

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run ``work()`` on the loop thread and wait for its result.

        Raises:
            WrongThreadError: called on the loop thread.
            ClosedError: the loop thread has stopped.
        """
        self.refuse_own_thread()
        return self.start(work).result()

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        """Have ``callback(*args)`` called on the loop thread, which it must not block.

        Raises:
            ClosedError: the loop thread has stopped, or is that of the process that this one was forked from.
        """
        if self._forked:
            raise ClosedError(_FORKED)
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError as exc:
            raise ClosedError(_STOPPED) from exc

    @asynccontextmanager
    async def hold(self, key: Hashable, factory: Callable[[], AbstractAsyncContextManager[T]]) -> AsyncIterator[T]:
        """As ``lease``, for work that already runs on the loop thread."""
        resource = await self._acquire(key, factory)
        try:
            yield resource.value
        finally:
            self._give_back(key, resource)

    @contextmanager
    def lease(self, key: Hashable, factory: Callable[[], AbstractAsyncContextManager[T]]) -> Iterator[T]:
        """Hold the resource for ``key``, opening it with ``factory()`` on the loop if nobody has.

        What is yielded lives on the loop thread: use it through ``run`` and ``start`` only.
        """
        resource = self.run(lambda: self._acquire(key, factory))
        try:
            yield resource.value
        finally:
            with suppress(ClosedError):
                self.call_soon(self._give_back, key, resource)

    def close(self) -> None:
        """Cancel what runs, close what is leased, stop the thread. Idempotent; callable from any other thread."""
        self.refuse_own_thread()
        if self._thread.is_alive():
            with suppress(ClosedError):
                self.call_soon(self._stop.set)
            self._thread.join(EXIT_TIMEOUT_S)

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

    @property
    def is_own_thread(self) -> bool:
        """Whether this is the loop thread."""
        return threading.current_thread() is self._thread

    def refuse_own_thread(self) -> None:
        """Refuse a blocking call on the loop thread.

        Raises:
            WrongThreadError: this is it.
        """
        if self.is_own_thread:
            raise WrongThreadError(
                "a blocking call on aiockpt's own loop thread would wait for itself: call it from another thread"
            )

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
        hosts = {resource.task for resource in self._resources.values()}
        others = asyncio.all_tasks() - hosts - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for resource in self._resources.values():
            resource.close()
        await asyncio.gather(*hosts, return_exceptions=True)

    async def _acquire(self, key: Hashable, factory: Callable[[], AbstractAsyncContextManager[Any]]) -> _Resource:
        resource = self._resources.get(key)
        if resource is None or resource.task.done():
            resource = self._resources[key] = _Resource(factory)
        resource.leases += 1
        if resource.closing is not None:
            resource.closing.cancel()
            resource.closing = None
        try:
            await resource.opened()
        except BaseException:
            self._give_back(key, resource)
            raise
        return resource

    def _give_back(self, key: Hashable, resource: _Resource) -> None:
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
        _bridge.forget_in_child()
        _left_to_parent.append(_bridge)
        _bridge = None


atexit.register(_stop_at_exit)
os.register_at_fork(after_in_child=_forget_after_fork)
