"""The threads that the bridges start, and which of them must not wait."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import uvloop

from aiockpt.errors import WrongThreadError

T = TypeVar("T")


class LoopThread(threading.Thread):
    """A thread that runs an event loop of ours. A daemon: what is under way at exit is wound up, not waited for."""

    def __init__(self, name: str, run: Callable[[], object]) -> None:
        super().__init__(name=f"aiockpt-{name}", target=run, daemon=True)


def on_loop_thread() -> bool:
    """Whether this thread runs a loop of ours."""
    return isinstance(threading.current_thread(), LoopThread)


def refuse_loop_thread() -> None:
    """Refuse a blocking call on a loop thread: what it waits for may need that thread.

    Raises:
        WrongThreadError: this is one.
    """
    if on_loop_thread():
        raise WrongThreadError(
            "a blocking call on aiockpt's own loop thread would wait for itself: call it from another thread"
        )


class OwnThreads(concurrent.futures.Executor):
    """A loop's default executor: a thread for each of the few things that aiobotocore does in one.

    The standard one refuses work once the main thread has ended. A save that ``dcp.async_save`` began goes on then,
    since the interpreter waits for it, and must be able to build its client.
    """

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[T]:
        """Run ``fn`` in a thread of its own, or in this one if none can be started."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def work() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as error:  # noqa: BLE001  # the future's
                    future.set_exception(error)

        try:
            threading.Thread(target=work, name="aiockpt-work", daemon=True).start()
        except RuntimeError:  # there is none to be had, see OwnLoop
            work()
        return future


class OwnLoop(uvloop.Loop):
    """A loop that starts threads of ``OwnThreads`` only, and can do without them.

    Python 3.12.0 to 3.12.2 refuse to start any once the main thread has ended (python/cpython#113964).
    """

    def __init__(self) -> None:
        super().__init__()
        self.set_default_executor(OwnThreads())

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109  # asyncio's
        """Nothing: uvloop's starts a thread to wait for those of the executor, and ours end with their work."""
