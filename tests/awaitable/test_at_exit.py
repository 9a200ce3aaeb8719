from __future__ import annotations

import threading

import pytest

from aiockpt.awaitable import at_exit
from aiockpt.awaitable.at_exit import see_through_at_exit, wait_for_all
from aiockpt.awaitable.background import Background
from aiockpt.awaitable.operation import Operation
from aiockpt.observe.report import Report
from awaitable.states import Gate
from awaitable.test_background import REPORT, Adapter


def under_way(gate: Gate) -> Background:
    def work() -> Report:
        gate.pass_through()
        return REPORT

    background = Background(Adapter(), Operation(work))
    see_through_at_exit(background)
    return background


def test_exit_waits() -> None:
    gate = Gate()
    background = under_way(gate)
    exit_ = threading.Thread(target=wait_for_all)
    exit_.start()
    exit_.join(0.05)
    assert exit_.is_alive()
    gate.open.set()
    exit_.join(10)
    assert background.done
    assert not at_exit._under_way


def test_exit_does_not_wait_for_what_was_cancelled() -> None:
    gate = Gate()
    background = under_way(gate)
    background.cancel()
    wait_for_all()
    assert not background.done
    gate.open.set()
    background.wait()


def test_an_interrupted_exit_cancels(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    background = under_way(gate)
    waits: list[float | None] = []

    def interrupted(timeout_s: float | None = None) -> bool:
        waits.append(timeout_s)
        if timeout_s is None:
            raise KeyboardInterrupt
        gate.open.set()
        return Background.wait(background, timeout_s)

    monkeypatch.setattr(background, "wait", interrupted)
    wait_for_all()
    assert background.cancelled
    assert len(waits) == 2
