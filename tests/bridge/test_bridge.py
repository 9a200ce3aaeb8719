from __future__ import annotations

import asyncio
import gc
import signal
import threading
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from aiockpt.bridge import Bridge
from aiockpt.errors import ClosedError
from bridge.work import Work, spin, value


def test_results(bridge: Bridge) -> None:
    assert bridge.run(lambda: value(3)) == 3
    call = bridge.start(lambda: value(4))
    assert call.wait()
    assert call.done
    assert call.result() == 4


def test_errors_come_as_they_are(bridge: Bridge) -> None:
    async def fail() -> None:
        raise LookupError("here")

    with pytest.raises(LookupError, match="here"):
        bridge.run(fail)


def test_work_that_is_no_coroutine_is_an_error_and_no_hang(bridge: Bridge) -> None:
    def broken() -> Coroutine[Any, Any, None]:
        raise LookupError("before there is a coroutine")

    with pytest.raises(LookupError):
        bridge.run(broken)
    with pytest.raises(TypeError):
        bridge.run(lambda: 3)  # type: ignore[arg-type,return-value]


def test_two_threads(bridge: Bridge) -> None:
    met = [asyncio.Event(), asyncio.Event()]

    async def meet(own: int) -> None:
        met[own].set()
        await met[1 - own].wait()

    threads = [threading.Thread(target=bridge.run, args=(lambda own=own: meet(own),)) for own in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


def test_close(bridge: Bridge) -> None:
    work = Work()
    call = bridge.start(work)
    work.running.wait()
    bridge.close()
    assert work.ended.is_set()
    with pytest.raises(ClosedError):
        call.result()
    for late in (lambda: bridge.run(lambda: value(1)), lambda: bridge.start(lambda: value(1))):
        with pytest.raises(ClosedError, match="stopped"):
            late()
    bridge.close()
    assert "aiockpt-loop" not in {thread.name for thread in threading.enumerate() if thread is bridge._thread}


def test_whoever_calls_while_it_closes_is_told() -> None:
    for _ in range(10):
        bridge = Bridge("loop")
        outcomes: list[object] = []

        def call(bridge: Bridge = bridge, outcomes: list[object] = outcomes) -> None:
            try:
                while True:
                    bridge.run(lambda: value(1))
            except BaseException as error:  # noqa: BLE001  # whatever it is
                outcomes.append(type(error))

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        bridge.close()
        for thread in threads:
            thread.join(5)
        assert outcomes == [ClosedError] * 4


@pytest.mark.filterwarnings("ignore:Exception in thread aiockpt-loop")
def test_a_loop_that_breaks_ends_every_wait(bridge: Bridge) -> None:
    blocked, go_on = threading.Event(), threading.Event()

    async def breaks() -> None:
        blocked.set()
        go_on.wait()
        bridge._loop.stop()

    bridge.start(breaks)
    blocked.wait()
    late = bridge.start(lambda: value(1))
    go_on.set()
    assert late.wait(5)
    with pytest.raises(ClosedError):
        late.result()


def test_no_thread_is_left(bridge: Bridge) -> None:
    before = threading.active_count()
    for _ in range(20):
        made = Bridge("loop")
        made.run(lambda: value(1))
        made.close()
    gc.collect()
    assert threading.active_count() == before


def test_signals_stay_with_the_main_thread(bridge: Bridge) -> None:
    before = signal.getsignal(signal.SIGINT)
    bridge.run(lambda: value(1))
    assert signal.getsignal(signal.SIGINT) is before


def test_cpu_time_is_that_of_the_loop_thread(bridge: Bridge) -> None:
    bridge.run(spin(0.0))
    before = bridge.cpu_s
    bridge.run(spin(0.02))
    assert bridge.cpu_s - before >= 0.02
    bridge.close()
    assert bridge.cpu_s >= 0  # whether or not the system still knows the thread


def test_where_a_threads_cpu_time_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(time, "pthread_getcpuclockid")
    bridge = Bridge("loop")
    assert bridge.run(lambda: value(3)) == 3
    assert bridge.cpu_s == 0
    bridge.close()
