"""The collector is as it was afterwards, whatever happened meanwhile."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from aiockpt.dcp.collector import collector_paused


@pytest.fixture(autouse=True)
def collector_on() -> Iterator[None]:
    gc.enable()
    yield
    gc.enable()


def test_nothing_is_collected_while_it_is_paused() -> None:
    collections: list[str] = []
    gc.callbacks.append(lambda phase, _: collections.append(phase))
    try:
        with collector_paused():
            kept = [[number] for number in range(10 * gc.get_threshold()[0])]
            assert not collections
        kept += [[number] for number in range(10)]
        assert collections
    finally:
        gc.callbacks.pop()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    with collector_paused():
        pass
    assert not gc.isenabled()


def test_it_runs_again_after_a_failure() -> None:
    with pytest.raises(ValueError, match="as meant"), collector_paused():
        raise ValueError("as meant")
    assert gc.isenabled()


def test_pauses_may_be_nested() -> None:
    with collector_paused():
        with collector_paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
