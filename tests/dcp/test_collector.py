"""The collector is as it was afterwards, whatever happened meanwhile."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from weakref import ref

import pytest

from aiockpt.dcp.collector import MOST_FREEZES, collector_paused


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


def _pause(times: int) -> None:
    for _ in range(times):
        with collector_paused():
            pass


def _full_passes() -> int:
    passes: int = gc.get_stats()[2]["collections"]
    return passes


def test_garbage_that_is_old_is_found_in_the_end() -> None:
    """To be made to count objects as old makes the collector forget when it is to look at everything again."""
    kept = _Cycle()
    gone = ref(kept)
    _pause(1)
    del kept
    _pause(MOST_FREEZES)
    assert gone() is None


def test_a_full_pass_is_made_as_seldom() -> None:
    gc.collect()
    passes = _full_passes()
    _pause(MOST_FREEZES)
    assert _full_passes() == passes
    _pause(1)
    assert _full_passes() == passes + 1
    _pause(MOST_FREEZES)
    assert _full_passes() == passes + 1


def test_no_full_pass_is_made_where_somebody_froze() -> None:
    gc.collect()
    passes = _full_passes()
    gc.freeze()
    try:
        _pause(2 * MOST_FREEZES)
        assert _full_passes() == passes
    finally:
        gc.unfreeze()


def test_a_collector_without_thresholds_is_off_too() -> None:
    thresholds = gc.get_threshold()
    gc.set_threshold(0)
    try:
        gone = ref(_Cycle())
        _pause(2 * MOST_FREEZES)
        assert gone() is not None
    finally:
        gc.set_threshold(*thresholds)
