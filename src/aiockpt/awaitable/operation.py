"""Operations: a synchronous save or load in a thread of its own, to be awaited or cancelled.

A thread for each: in a pool of bounded size, the collectives of some could wait for others that wait for a thread. The
bytes move on aiockpt's loop thread meanwhile, the caller's loop does nothing but wait.

Cancelling reaches the thread wherever it touches the storage: it raises there, and DCP carries the failure to the other
ranks. A thread that is inside a collective when it is cancelled stays until the other ranks have come, to tell them; it
touches no memory and no storage any more, and the wait for it does not last longer than ``outcome.WIND_UP_S``.
"""

from __future__ import annotations

import concurrent.futures
import contextvars
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from aiockpt.awaitable.outcome import settle
from aiockpt.awaitable.turns import Turn
from aiockpt.bridge import refuse_loop_thread
from aiockpt.errors import ClosedError
from aiockpt.scope import Scope

T = TypeVar("T")


class Operation(Generic[T]):
    """See the module; begins at once.

    The thread has the caller's context variables, CUDA device and CUDA stream.

    Args:
        work: what to do in the thread.
        scope: what it starts belongs to; None: a scope of its own.
        turn: held while working.

    Attributes:
        scope: see above.
        outcome: of the work; not to be cancelled itself.

    Raises:
        WrongThreadError: on aiockpt's own loop thread.
    """

    def __init__(
        self,
        work: Callable[[], T],
        *,
        scope: Scope | None = None,
        turn: Turn | None = None,
    ) -> None:
        self.scope = scope or Scope()
        self.outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        self.outcome.set_running_or_notify_cancel()
        turn = turn or Turn()
        job = [_Job(work, turn, self.scope, _stream_of_this_thread())]  # a list, for the thread to empty
        try:
            refuse_loop_thread()
            threading.Thread(
                target=contextvars.copy_context().run,
                args=(_perform, job, self.scope, self.outcome),
                name="aiockpt-operation",
                daemon=True,
            ).start()
        except BaseException:
            turn.give_up()
            raise

    async def settled(self) -> T:
        """Its result. A cancellation cancels it, and waits; see ``settle``."""
        return await settle(self.outcome, self.scope)


@dataclass(frozen=True, slots=True)
class _Job(Generic[T]):
    """What the thread does."""

    work: Callable[[], T]
    turn: Turn
    scope: Scope
    adopt_stream: Callable[[], object]

    def __call__(self) -> T:
        with self.turn, self.scope.entered():
            self.adopt_stream()
            return self.work()


def _perform(job: list[_Job[T]], scope: Scope, outcome: concurrent.futures.Future[T]) -> None:
    """The thread. When it tells its outcome it has let go of everything: the interpreter may end before the thread."""
    try:
        result = job.pop()()
    except BaseException as error:  # noqa: BLE001  # DCP's own is none of Exception's
        outcome.set_exception(_told(error, scope))
    else:
        outcome.set_result(result)
    finally:
        del outcome  # which has the error, whose traceback has this frame: no circle


def _told(error: BaseException, scope: Scope) -> BaseException:
    """What a failure is for who waits: of a cancelled operation, just that."""
    if not scope.cancelled:
        return error
    cancelled = ClosedError("cancelled by its caller")
    cancelled.__cause__ = error
    return cancelled


def _stream_of_this_thread() -> Callable[[], object]:
    """Something to be called in another thread, which then works on this one's CUDA device and stream."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return lambda: None
    stream = torch.cuda.current_stream()
    return lambda: torch.cuda.set_stream(stream)
