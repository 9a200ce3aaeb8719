"""The collector is as it was afterwards, whatever happened meanwhile."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any
from weakref import ref

import pytest
import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.api import CheckpointException

from aiockpt.dcp import collector
from aiockpt.dcp.collector import LONGEST_ASIDE_S, collector_paused, set_aside, take_back
from dcp.checkpoints import Place, emptied


@pytest.fixture(autouse=True)
def collector_on() -> Iterator[None]:
    gc.enable()
    take_back()
    yield
    take_back()
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


def _is_looked_at(thing: object) -> bool:
    return any(one is thing for one in gc.get_objects())


def test_what_was_set_aside_is_not_looked_at_until_it_is_taken_back() -> None:
    before: list[int] = []
    set_aside()
    new: list[int] = []
    assert not _is_looked_at(before)
    assert _is_looked_at(new)
    set_aside()
    assert not _is_looked_at(new)
    take_back()
    assert _is_old(before)
    assert _is_old(new)
    assert gc.get_freeze_count() == 0


def test_garbage_that_is_made_meanwhile_is_found() -> None:
    set_aside()
    gone = ref(_Cycle())
    gc.collect()
    assert gone() is None


def test_young_garbage_is_not_set_aside() -> None:
    gone = ref(_Cycle())
    set_aside()
    assert gone() is None


def test_garbage_that_was_set_aside_is_found_afterwards() -> None:
    kept = _Cycle()
    gone = ref(kept)
    set_aside()
    del kept
    gc.collect()
    assert gone() is not None
    take_back()
    gc.collect()
    assert gone() is None


def test_nothing_is_set_aside_if_the_collector_is_off() -> None:
    gc.disable()
    frozen = gc.get_freeze_count()
    set_aside()
    assert gc.get_freeze_count() == frozen


def test_what_somebody_froze_is_not_taken_back() -> None:
    gc.freeze()
    try:
        set_aside()
        new: list[int] = []
        take_back()
        assert gc.get_freeze_count() > 0
        assert _is_looked_at(new)
    finally:
        gc.unfreeze()


def test_a_pause_meanwhile_takes_nothing_back() -> None:
    before: list[int] = []
    set_aside()
    with collector_paused():
        made: list[int] = []
    assert not _is_looked_at(before)
    assert _is_looked_at(made)


def test_what_nobody_takes_back_comes_back_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(collector, "monotonic", lambda: now)
    before: list[int] = []
    set_aside()
    now += LONGEST_ASIDE_S
    gc.collect(0)
    assert not _is_looked_at(before)
    now += 0.1
    gc.collect(0)
    assert _is_looked_at(before)


STATE = {f"layer.{number}": torch.full((4,), number) for number in range(20)}


class _Watch:
    """Notes at which of a planner's steps the collector would look at an object that was there before."""

    def __init__(self) -> None:
        self.looked_at: dict[str, bool] = {}
        self._before: list[int] = []

    def note(self, step: str) -> None:
        self.looked_at[step] = _is_looked_at(self._before)


class _SavePlanner(DefaultSavePlanner):
    def __init__(self, watch: _Watch, fails: bool = False) -> None:
        super().__init__()
        self._watch = watch
        self._fails = fails

    def create_local_plan(self) -> Any:
        self._watch.note("local")
        return super().create_local_plan()

    def create_global_plan(self, all_plans: Any) -> Any:
        self._watch.note("global")
        if self._fails:
            raise ValueError("as meant")
        return super().create_global_plan(all_plans)

    def resolve_data(self, write_item: Any) -> Any:
        self._watch.note("data")
        return super().resolve_data(write_item)


class _LoadPlanner(DefaultLoadPlanner):
    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._watch = watch

    def create_local_plan(self) -> Any:
        self._watch.note("local")
        return super().create_local_plan()

    def create_global_plan(self, global_plan: Any) -> Any:
        self._watch.note("global")
        return super().create_global_plan(global_plan)

    def commit_tensor(self, read_item: Any, tensor: torch.Tensor) -> None:
        self._watch.note("data")
        super().commit_tensor(read_item, tensor)


def test_planning_does_not_have_everything_looked_at(local: Place) -> None:
    watch = _Watch()
    local.save(STATE, planner=_SavePlanner(watch))
    assert watch.looked_at == {"local": False, "global": False, "data": True}
    watch = _Watch()
    local.load(emptied(STATE), planner=_LoadPlanner(watch))
    assert watch.looked_at == {"local": False, "global": False, "data": True}
    assert gc.get_freeze_count() == 0


def test_planning_that_fails_is_over_some_time(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(collector, "monotonic", lambda: now)
    watch = _Watch()
    with pytest.raises(CheckpointException):
        local.save(STATE, planner=_SavePlanner(watch, fails=True))
    now += LONGEST_ASIDE_S + 1
    gc.collect(0)
    watch.note("afterwards")
    assert watch.looked_at == {"local": False, "global": False, "afterwards": True}


def test_a_path_that_is_taken_is_refused_with_everything_back(local: Place) -> None:
    local.save(STATE)
    with pytest.raises(CheckpointException):
        local.save(STATE, overwrite=False)
    assert gc.get_freeze_count() == 0
