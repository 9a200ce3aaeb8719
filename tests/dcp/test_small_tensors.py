"""What a small tensor costs the thread that called DCP: calls, counted. Times would say it too, but not each time.

Calls of our own functions and those that they make, into Python or C; DCP's own are its business.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import aiockpt
from dcp.checkpoints import Place, StateDict

OURS = str(Path(aiockpt.__file__).parent)


def state(count: int) -> StateDict:
    return {f"w{number}": torch.full((1024,), float(number)) for number in range(count)}


def calls_of(work: Callable[[], object]) -> int:
    """Calls by and of our code, on this thread."""
    calls = 0

    def count(frame: FrameType, event: str, _: Any) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"} and frame.f_code.co_filename.startswith(OURS)

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return calls


def calls_each(measure: Callable[[int], int], fewer: int, more: int) -> float:
    """Calls for each further tensor: what a save or load costs as a whole is no part of it."""
    return (measure(more) - measure(fewer)) / (more - fewer)


@pytest.fixture
def saved(local: Place) -> Callable[[int], int]:
    def measure(count: int) -> int:
        tensors = state(count)
        return calls_of(lambda: local.save(tensors, f"saved-{count}"))

    measure(1)  # what is done once in a process
    return measure


@pytest.fixture
def loaded(local: Place) -> Callable[[int], int]:
    def measure(count: int) -> int:
        local.save(state(count), f"loaded-{count}")
        tensors = {name: torch.zeros_like(tensor) for name, tensor in state(count).items()}
        calls = calls_of(lambda: local.load(tensors, f"loaded-{count}"))
        assert all(torch.equal(tensors[name], tensor) for name, tensor in state(count).items())
        return calls

    measure(1)
    return measure


def test_a_tensor_that_is_saved_takes_few_calls(saved: Callable[[int], int]) -> None:
    """74, of which 20 pickle its metadata; one of theirs in C takes about 50 ns, one in Python 100."""
    assert 30 < calls_each(saved, 200, 400) < 76


def test_a_tensor_that_is_loaded_takes_few_calls(loaded: Callable[[int], int]) -> None:
    """75, of which 30 find out where it lies."""
    assert 30 < calls_each(loaded, 200, 400) < 80


@pytest.mark.parametrize("measured", ["saved", "loaded"])
def test_a_tensor_costs_the_same_however_many_there_are(measured: str, request: pytest.FixtureRequest) -> None:
    measure = request.getfixturevalue(measured)
    assert calls_each(measure, 300, 600) == pytest.approx(calls_each(measure, 50, 100), abs=3)
