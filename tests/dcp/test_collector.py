"""The collector is as it was afterwards, whatever happened meanwhile."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from threading import Timer
from threading import enumerate as threads
from typing import Any
from weakref import ref

import pytest
import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.api import CheckpointException

from aiockpt.dcp import collector
from aiockpt.dcp.collector import MOST_FREEZES, allow_full_passes, collector_paused, put_off_full_passes
from dcp.checkpoints import Place

#: Not Python's own, so that it shows that they are given back.
THRESHOLDS = (600, 9, 7)


def _clocks() -> list[Timer]:
    return [thread for thread in threads() if isinstance(thread, Timer)]


@pytest.fixture(autouse=True)
def collector_on() -> Iterator[None]:
    thresholds = gc.get_threshold()
    gc.enable()
    gc.set_threshold(*THRESHOLDS)
    yield
    gc.enable()
    gc.set_threshold(*thresholds)
    for clock in _clocks():
        clock.cancel()
        clock.join()


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
    gc.set_threshold(0)
    gone = ref(_Cycle())
    _pause(2 * MOST_FREEZES)
    assert gone() is not None


def _so_many_objects() -> list[list[int]]:
    """As many as bring a full pass about: more than a quarter of what is old."""
    return [[] for _ in range(len(gc.get_objects(generation=2)) // 2)]


def _passes_of(work: Any) -> int:
    """How many full passes came while something was made; it is kept so long."""
    gc.collect()
    passes = _full_passes()
    made = work()
    passes = _full_passes() - passes
    del made
    return passes


def test_many_new_objects_bring_a_full_pass_about() -> None:
    assert _passes_of(_so_many_objects) > 0  # or the next test would show nothing


def test_full_passes_are_put_off_and_those_that_were_do_not_come_afterwards() -> None:
    def work() -> list[list[int]]:
        put_off_full_passes()
        made = _so_many_objects()
        allow_full_passes()
        return made + [[] for _ in range(10 * THRESHOLDS[0])]

    assert _passes_of(work) == 0
    assert gc.get_threshold() == THRESHOLDS


def test_young_garbage_is_found_meanwhile_and_all_of_it_by_who_asks() -> None:
    old = _Cycle()
    gc.collect()
    put_off_full_passes()
    gone, young = ref(old), ref(_Cycle())
    kept: list[list[int]] = [[] for _ in range(2 * THRESHOLDS[0])]
    assert young() is None
    del old
    assert gone() is not None
    gc.collect()
    assert gone() is None
    del kept
    allow_full_passes()


def _join_clocks() -> None:
    for clock in _clocks():
        clock.join(10)
        assert not clock.is_alive()


def test_they_come_again_in_time_if_nobody_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "LONGEST_S", 0.0)
    put_off_full_passes()
    _join_clocks()
    assert gc.get_threshold() == THRESHOLDS


def test_the_clock_runs_while_they_are_put_off_and_then_no_more() -> None:
    put_off_full_passes()
    (clock,) = _clocks()
    assert clock.daemon
    assert clock.interval == collector.LONGEST_S
    allow_full_passes()
    _join_clocks()


def test_two_put_them_off_and_the_first_end_counts() -> None:
    put_off_full_passes()
    put_off_full_passes()
    allow_full_passes()
    assert gc.get_threshold() == THRESHOLDS
    allow_full_passes()
    assert gc.get_threshold() == THRESHOLDS
    _join_clocks()  # neither runs on


def test_who_sets_the_thresholds_meanwhile_keeps_his_own() -> None:
    put_off_full_passes()
    gc.set_threshold(500, 6, 5)
    allow_full_passes()
    assert gc.get_threshold() == (500, 6, 5)


def test_who_sets_only_the_first_threshold_meanwhile_has_the_last_given_back() -> None:
    put_off_full_passes()
    gc.set_threshold(500)
    allow_full_passes()
    assert gc.get_threshold() == (500, *THRESHOLDS[1:])


@pytest.mark.parametrize("off", [gc.disable, lambda: gc.set_threshold(0)], ids=["disabled", "no threshold"])
def test_nothing_is_put_off_where_the_collector_is_off(off: Any) -> None:
    off()
    thresholds = gc.get_threshold()
    put_off_full_passes()
    assert gc.get_threshold() == thresholds
    assert not _clocks()
    allow_full_passes()
    assert gc.get_threshold() == thresholds


def test_nothing_is_put_off_without_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Timer) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Timer, "start", refuse)
    put_off_full_passes()
    assert gc.get_threshold() == THRESHOLDS


def test_ctrl_c_while_the_clock_is_started_leaves_nothing_put_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Timer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Timer, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        put_off_full_passes()
    assert gc.get_threshold() == THRESHOLDS


def test_a_forked_child_has_its_full_passes() -> None:
    put_off_full_passes()
    child = os.fork()
    if not child:
        os._exit(gc.get_threshold() != THRESHOLDS)
    try:
        assert os.waitpid(child, 0)[1] == 0
        assert gc.get_threshold() != THRESHOLDS
    finally:
        allow_full_passes()


STATE = {f"layer.{number}": torch.full((4,), number) for number in range(20)}


class _Notes:
    """At which steps of a planner the thresholds are as they were."""

    def __init__(self, fails_at: str | None = None) -> None:
        self.as_they_were: dict[str, bool] = {}
        self._fails_at = fails_at

    def __call__(self, step: str) -> None:
        self.as_they_were[step] = gc.get_threshold() == THRESHOLDS
        if step == self._fails_at:
            raise ValueError("as meant")


class _SavePlanner(DefaultSavePlanner):
    def __init__(self, notes: _Notes) -> None:
        super().__init__()
        self._note = notes

    def create_local_plan(self) -> Any:
        self._note("local")
        return super().create_local_plan()

    def create_global_plan(self, all_plans: Any) -> Any:
        self._note("global")
        return super().create_global_plan(all_plans)

    def resolve_data(self, write_item: Any) -> Any:
        self._note("data")
        return super().resolve_data(write_item)


class _LoadPlanner(DefaultLoadPlanner):
    def __init__(self, notes: _Notes) -> None:
        super().__init__()
        self._note = notes

    def create_local_plan(self) -> Any:
        self._note("local")
        return super().create_local_plan()

    def create_global_plan(self, global_plan: Any) -> Any:
        self._note("global")
        return super().create_global_plan(global_plan)

    def resolve_tensor(self, read_item: Any) -> Any:
        self._note("data")
        return super().resolve_tensor(read_item)


WHILE_PLANNED = {"local": False, "global": False, "data": True}


def test_a_save_and_a_load_put_them_off_while_they_are_planned(local: Place) -> None:
    saved, loaded = _Notes(), _Notes()
    local.save(STATE, planner=_SavePlanner(saved))
    local.load(STATE, planner=_LoadPlanner(loaded))
    assert saved.as_they_were == loaded.as_they_were == WHILE_PLANNED
    _join_clocks()


@pytest.mark.parametrize("step", ["local", "global"])
def test_planning_that_fails_puts_them_off_for_a_time(local: Place, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    local.save(STATE)
    monkeypatch.setattr(collector, "LONGEST_S", 0.1)
    with pytest.raises(CheckpointException):
        local.save(STATE, planner=_SavePlanner(_Notes(step)), overwrite=True)
    _join_clocks()
    assert gc.get_threshold() == THRESHOLDS
    with pytest.raises(CheckpointException):
        local.load(STATE, planner=_LoadPlanner(_Notes(step)))
    _join_clocks()
    assert gc.get_threshold() == THRESHOLDS
