"""Calls: coroutines that run on a loop thread for others, who wait for them, or cancel them."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio

from aiockpt.bridge.threads import on_loop_thread, refuse_loop_thread
from aiockpt.bridge.waiting import outcome_of, wait_for
from aiockpt.errors import ClosedError
from aiockpt.scope import Scope

if TYPE_CHECKING:
    from aiockpt.bridge.bridge import Bridge

T = TypeVar("T")

STOPPED = "aiockpt's loop thread has stopped: the interpreter is shutting down"
FORKED = "this process was forked while the call was under way, which goes on in the parent only: call again"
_CANCELLED = "the call was cancelled, or aiockpt's loop thread is stopping"

#: Longest wait for a loop thread to wind up, at exit or after Ctrl-C: uploads are aborted in that time.
WIND_UP_TIMEOUT_S = 10.0


class Call(Generic[T]):
    """A coroutine that runs on a loop thread: wait for it, or cancel it.

    Args:
        bridge: that of the thread.
        work: makes the coroutine, there.
        on_end: called there once the work has ended, before its outcome is known, also if it never began.
        scope: what it belongs to.

    Attributes:
        outcome: what waits for it; not to be cancelled itself.
    """

    def __init__(
        self,
        bridge: Bridge,
        work: Callable[[], Coroutine[Any, Any, T]],
        on_end: Callable[[], object] = lambda: None,
        scope: Scope | None = None,
    ) -> None:
        self._bridge = bridge
        self._work = work
        self._on_end = on_end
        self.outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._task: asyncio.Task[T] | None = None
        self._unwanted = False
        self._scope = scope
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
            WrongThreadError: called on a loop thread.
            ClosedError: the work was cancelled, or there is no loop thread any more.
        """
        refuse_loop_thread()
        try:
            return outcome_of(self.outcome)
        except concurrent.futures.CancelledError:
            raise ClosedError(_CANCELLED) from None
        except BaseException:
            if not self.outcome.done():
                self.cancel()
                wait_for(self.outcome, WIND_UP_TIMEOUT_S)
            raise

    async def ended(self) -> T:
        """Wait for the outcome on a loop of another thread; a cancellation cancels the work and waits for its end.

        Raises:
            ClosedError: the work was cancelled by others, or there is no loop thread any more.
        """
        waiting = asyncio.wrap_future(self.outcome)
        try:
            await asyncio.wait([waiting])
        except asyncio.CancelledError:
            self.cancel()
            await _over(waiting)
            raise
        except BaseException:  # the coroutine is thrown away: nobody can wait
            self.cancel()
            raise
        if waiting.cancelled():
            raise ClosedError(_CANCELLED)
        return waiting.result()

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

        On a loop thread, where the garbage collector may have brought us, it does not wait.
        """
        if on_loop_thread():
            return self.done
        return wait_for(self.outcome, timeout_s)

    def lose(self) -> None:
        """There is no loop to bring an outcome: let whoever waits go on."""
        self._leave()
        if not self.outcome.done():
            self.outcome.set_exception(ClosedError(STOPPED))

    def lose_in_child(self) -> None:
        """Likewise after a fork; the lock of the former outcome may be held by a thread that is not there."""
        self.outcome = concurrent.futures.Future()
        self.outcome.set_exception(ClosedError(FORKED))

    def _leave(self) -> None:
        """It has ended: nobody needs to remember it, and who waits for what it would bring is told."""
        self._bridge.forget(self)
        if self._scope is not None:
            self._scope.discard(self)
        self._on_end()


async def _over(waiting: asyncio.Future[Any]) -> None:
    """Wait for the end of what was cancelled, whoever else wants to cut that short."""
    with anyio.CancelScope(shield=True):
        while not waiting.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([waiting])
    if not waiting.cancelled():
        waiting.exception()  # retrieved: the cancellation is what is told
