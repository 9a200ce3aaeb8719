from __future__ import annotations

import pytest

from aiockpt.awaitable.background import Background
from aiockpt.awaitable.operation import Operation
from aiockpt.errors import ClosedError
from aiockpt.observe.report import Progress, Report
from aiockpt.scope import session
from awaitable.states import Gate, threads_left

REPORT = Report("save", "s3://bucket/ckpt")
PROGRESS = Progress(1, 2, 3, 4.0, 5.0, None)


class Adapter:
    report = REPORT

    def progress(self) -> Progress:
        return PROGRESS


async def test_it_is_awaited_and_asked() -> None:
    gate = Gate()

    def work() -> Report:
        gate.pass_through()
        return REPORT

    background = Background(Adapter(), Operation(work))
    await gate.until_reached()
    assert background.progress() is PROGRESS
    assert [background.done, background.cancelled] == [False, False]
    gate.open.set()
    assert await background is REPORT
    await background.aclose()
    assert await background is REPORT


async def test_closing_waits_for_what_touches_memory() -> None:
    gate = Gate()

    def work() -> Report:
        with session():
            gate.pass_through()
        raise AssertionError("it was cancelled")

    operation = Operation(work)
    background = Background(Adapter(), operation)
    await gate.until_reached()
    background.cancel()
    assert background.cancelled
    assert not operation.scope.is_idle
    gate.open.set()
    await background.aclose()
    assert threads_left() == []
    with pytest.raises(ClosedError):
        await background
