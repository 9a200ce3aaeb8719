from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from typing import Any

import pytest

from aiockpt.bridge import Bridge, get_bridge
from aiockpt.errors import WrongThreadError
from bridge.work import forever, needs_late_threads, resource, value


@pytest.mark.parametrize(
    "blocking",
    [
        lambda bridge: bridge.run(lambda: value(1)),
        lambda bridge: bridge.close(),
        lambda bridge: bridge.start(lambda: value(1)).result(),
        lambda bridge: bridge.lease("key", resource([])).__enter__(),
    ],
)
def test_a_blocking_call_on_the_loop_thread_is_refused(bridge: Bridge, blocking: Callable[[Bridge], Any]) -> None:
    async def call() -> None:
        blocking(bridge)

    with pytest.raises(WrongThreadError, match="another thread"):
        bridge.run(call)


def test_no_loop_thread_waits_for_another(bridge: Bridge, other: Bridge) -> None:
    """Which may need it for what it is waited for."""

    async def call() -> None:
        bridge.run(lambda: value(1))

    with pytest.raises(WrongThreadError, match="another thread"):
        other.run(call)

    async def wait() -> bool:
        return bridge.start(forever).wait()

    assert other.run(wait) is False


@pytest.mark.parametrize("begun", ["before", pytest.param("after", marks=needs_late_threads)])
def test_the_loops_threads_work_to_the_very_end(begun: str) -> None:
    """The standard executor refuses work once the main thread has ended, while other threads still save."""
    source = f"""
        import asyncio, threading
        from aiockpt.bridge import get_bridge

        def late():
            threading.main_thread().join()
            print(get_bridge().run(lambda: asyncio.to_thread(int, "42")))

        if {begun!r} == "before":
            get_bridge()
        threading.Thread(target=late).start()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(source)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("42\n", "")


def test_without_more_threads_the_loops_work_and_end(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refused)
    assert bridge.run(lambda: asyncio.to_thread(threading.get_ident)) == bridge._thread.ident
    with pytest.raises(ValueError, match="invalid literal"):
        bridge.run(lambda: asyncio.to_thread(int, "no number"))
    bridge.close()
    assert not bridge._thread.is_alive()


def test_what_fails_in_the_loops_threads_is_the_callers() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        get_bridge().run(lambda: asyncio.to_thread(int, "no number"))
