"""The collector is as it was afterwards, whatever happened meanwhile."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from weakref import ref

import pytest

from aiockpt.dcp.collector import collector_paused


@pytest.fixture(autouse=True)
def collector_on() -> Iterator[None]:
    gc.enable()
    yield
    gc.enable()


def test_what_is_made_while_it_is_paused_is_not_looked_at_then_nor_soon_after() -> None:
    collections: list[str] = []
    gc.callbacks.append(lambda phase, _: collections.append(phase))
    try:
        with collector_paused():
            collections.clear()
            kept = [[number] for number in range(10 * gc.get_threshold()[0])]
        kept += [[number] for number in range(10)]
        assert not collections
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


def _is_old(thing: object) -> bool:
    return any(one is thing for one in gc.get_objects(generation=2))


def test_what_was_made_meanwhile_is_old() -> None:
    with collector_paused():
        made: list[list[int]] = [[]]
    assert _is_old(made)
    assert _is_old(made[0])


class _Cycle:
    def __init__(self) -> None:
        self.itself = self


def test_garbage_does_not_become_old_with_it() -> None:
    """It would lie there, with the tensors that it may hold, until a full pass."""
    gone = ref(_Cycle())
    with collector_paused():
        assert gone() is None


def test_what_somebody_froze_stays_frozen() -> None:
    frozen: list[list[int]] = [[]]
    gc.freeze()
    try:
        with collector_paused():
            made: list[list[int]] = [[]]
        assert gc.get_freeze_count() > 0
        assert not _is_old(frozen)
        assert not _is_old(made)
    finally:
        gc.unfreeze()


def test_nothing_is_left_frozen() -> None:
    with collector_paused():
        pass
    assert gc.get_freeze_count() == 0
