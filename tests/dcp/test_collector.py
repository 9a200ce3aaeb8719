"""The collector is as it was afterwards, whatever happened meanwhile."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any
from weakref import ref

import pytest
import torch
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.api import CheckpointException

from aiockpt.dcp.collector import MOST_FREEZES, collector_paused, set_aside
from dcp.checkpoints import Place


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


def test_garbage_that_is_old_is_found_in_the_end() -> None:
    """Freezing makes the collector forget when it is to look at everything again."""
    kept = _Cycle()
    gone = ref(kept)
    with collector_paused():
        pass
    del kept
    for _ in range(MOST_FREEZES):
        with collector_paused():
            pass
    assert gone() is None


def test_a_full_pass_is_not_made_so_soon_after_another() -> None:
    gc.collect()
    passes = gc.get_stats()[2]["collections"]
    for _ in range(MOST_FREEZES):
        with collector_paused():
            pass
    assert gc.get_stats()[2]["collections"] == passes


class _Plan:
    """What planning goes on with."""


def _is_looked_at(thing: object) -> bool:
    return any(one is thing for one in gc.get_objects())


def test_what_was_set_aside_is_not_looked_at_until_the_end() -> None:
    before: list[int] = []
    plan = _Plan()
    end = set_aside(plan)
    new: list[int] = []
    assert not _is_looked_at(before)
    assert _is_looked_at(new)
    end()
    assert _is_old(before)
    assert _is_looked_at(new)
    assert gc.get_freeze_count() == 0


def test_the_end_is_when_the_plan_is_gone() -> None:
    before: list[int] = []
    plan = _Plan()
    set_aside(plan)
    assert not _is_looked_at(before)
    del plan
    assert _is_looked_at(before)


def test_the_end_comes_once() -> None:
    plan = _Plan()
    set_aside(plan)()
    gc.freeze()
    try:
        del plan
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_garbage_that_is_made_meanwhile_is_found() -> None:
    plan = _Plan()
    set_aside(plan)
    gone = ref(_Cycle())
    gc.collect()
    assert gone() is None


def test_garbage_that_was_set_aside_is_found_afterwards() -> None:
    kept, young, plan = _Cycle(), ref(_Cycle()), _Plan()
    gone = ref(kept)
    end = set_aside(plan)
    assert young() is None
    del kept
    gc.collect()
    assert gone() is not None
    end()
    gc.collect()
    assert gone() is None


def test_nothing_is_set_aside_if_the_collector_is_off() -> None:
    gc.disable()
    frozen = gc.get_freeze_count()
    plan = _Plan()
    set_aside(plan)
    assert gc.get_freeze_count() == frozen


def test_the_end_does_not_thaw_what_somebody_froze_before() -> None:
    gc.freeze()
    try:
        plan = _Plan()
        end = set_aside(plan)
        new: list[int] = []
        end()
        assert gc.get_freeze_count() > 0
        assert _is_looked_at(new)
    finally:
        gc.unfreeze()


STATE = {f"layer.{number}": torch.full((4,), number) for number in range(20)}


class _Planner(DefaultSavePlanner):
    """Notes at which of its steps the collector would look at what was there before."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__()
        self.looked_at: dict[str, bool] = {}
        self._before: list[int] = []
        self._fails = fails

    def note(self, step: str) -> None:
        self.looked_at[step] = _is_looked_at(self._before)

    def create_local_plan(self) -> Any:
        self.note("local")
        return super().create_local_plan()

    def create_global_plan(self, all_plans: Any) -> Any:
        self.note("global")
        if self._fails:
            raise ValueError("as meant")
        return super().create_global_plan(all_plans)

    def finish_plan(self, new_plan: Any) -> Any:
        self.note("finish")
        return super().finish_plan(new_plan)


def test_a_plan_of_plans_does_not_have_everything_looked_at(local: Place) -> None:
    planner = _Planner()
    local.save(STATE, planner=planner)
    assert planner.looked_at == {"local": True, "global": False, "finish": True}
    assert gc.get_freeze_count() == 0


def test_planning_that_fails_leaves_nothing_set_aside(local: Place) -> None:
    planner = _Planner(fails=True)
    with pytest.raises(CheckpointException):
        local.save(STATE, planner=planner)
    gc.collect()  # the failure and the frames that hold the plan hold each other
    planner.note("afterwards")
    assert planner.looked_at == {"local": True, "global": False, "afterwards": True}
