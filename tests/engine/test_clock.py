from __future__ import annotations

import math

import anyio
import anyio.lowlevel

from aiockpt.engine.clock import LoopClock


async def test_time_goes_on() -> None:
    clock = LoopClock()
    before = clock.now()
    await clock.sleep(0.002)
    assert clock.now() > before


async def test_what_is_called_later() -> None:
    clock, called = LoopClock(), anyio.Event()
    before = clock.now()
    clock.call_later(0.002, called.set)
    assert not called.is_set()
    await called.wait()
    assert clock.now() - before >= 0.001  # loops' timers tick in milliseconds


async def test_what_takes_too_long_is_cut() -> None:
    with LoopClock().cut_after(0.001) as scope:
        await anyio.sleep_forever()
    assert scope.cancelled_caught
    with LoopClock().cut_after(math.inf) as scope:
        await anyio.lowlevel.checkpoint()
    assert not scope.cancelled_caught
