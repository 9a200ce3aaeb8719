"""What the tests have loop threads do, and programs that use them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

#: For what starts threads once the main thread has ended.
needs_late_threads = pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 3), reason="this Python cannot (python/cpython#113964)"
)

# A loop in debug mode names each callback of 0.1 s and more, which any may take on a machine that is busy.
_SLOW_IS_NO_FAULT = """
import logging
logging.getLogger("asyncio").addFilter(lambda record: not str(record.msg).startswith("Executing "))
"""


def script(source: str, *, timeout_s: float = 20.0) -> subprocess.CompletedProcess[str]:
    """Run a program of its own."""
    return subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", _SLOW_IS_NO_FAULT + textwrap.dedent(source)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def assert_quiet(done: subprocess.CompletedProcess[str], said: str = "") -> None:
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, said.split(), "")


async def forever() -> None:
    await asyncio.Event().wait()


async def value(result: int) -> int:
    await asyncio.sleep(0)
    return result


class Work:
    """A coroutine that tells where it is, and how it ended."""

    def __init__(self) -> None:
        self.running = threading.Event()
        self.ended = threading.Event()

    async def __call__(self) -> None:
        self.running.set()
        try:
            await forever()
        finally:
            await asyncio.sleep(0)  # winding up takes its time
            self.ended.set()


def spin(seconds: float) -> Callable[[], Coroutine[Any, Any, None]]:
    """Work that uses that much of its thread's CPU time."""

    async def work() -> None:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass

    return work


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # timers of the loop are waited for
        await asyncio.sleep(0.001)


class Resource:
    def __init__(self, log: list[str]) -> None:
        self.log = log


def resource(log: list[str]) -> Callable[[], AbstractAsyncContextManager[Resource]]:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Resource]:
        task = asyncio.current_task()
        log.append("open")
        yield Resource(log)
        assert asyncio.current_task() is task
        log.append("close")

    return opened
