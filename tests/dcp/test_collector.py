"""The collector is as it was afterwards, whatever happened meanwhile."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any
from weakref import ref

import pytest
import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.api import CheckpointException

from aiockpt.dcp import collector
from aiockpt.dcp.collector import MOST_FREEZES, allow_full_passes, put_off_full_passes, without_collector
from dcp.checkpoints import Place

#: Not Python's own, so that it shows that they are given back.
THRESHOLDS = (600, 9, 7)


@pytest.fixture(autouse=True)
def collector_on() -> Iterator[None]:
    thresholds = gc.get_threshold()
    gc.enable()
    gc.set_threshold(*THRESHOLDS)
    gc.unfreeze()  # what Python 3.12 froze itself
    yield
    gc.enable()
    gc.set_threshold(*thresholds)


def _made(number: int) -> list[list[int]]:
    return [[] for _ in range(number)]


def test_what_is_made_while_it_is_paused_is_not_looked_at_then_nor_soon_after() -> None:
    collections: list[str] = []

    def work() -> list[list[int]]:
        collections.clear()
        return _made(10 * THRESHOLDS[0])

    gc.callbacks.append(lambda phase, _: collections.append(phase))
    try:
        kept = without_collector(work)
        kept += _made(10)
        assert not collections
    finally:
        gc.callbacks.pop()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    without_collector(lambda: None)
    assert not gc.isenabled()


def test_it_runs_again_after_a_failure() -> None:
    def fail() -> None:
        raise ValueError("as meant")

    with pytest.raises(ValueError, match="as meant"):
        without_collector(fail)
    assert gc.isenabled()


@pytest.mark.parametrize("step", ["collect", "disable", "get_freeze_count", "freeze", "unfreeze", "enable"])
def test_it_runs_again_after_ctrl_c(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python notices signals when a call returns."""

    def interrupted(*args: Any) -> None:
        getattr(gc, step)(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(collector, "gc", SimpleNamespace(**{**vars(gc), step: interrupted}))
    with pytest.raises(KeyboardInterrupt):
        without_collector(lambda: None)
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_it_may_be_nested() -> None:
    def work() -> bool:
        without_collector(lambda: None)
        return gc.isenabled()

    assert not without_collector(work)
    assert gc.isenabled()


def _is_old(thing: object) -> bool:
    return any(one is thing for one in gc.get_objects(generation=2))


def test_what_was_made_meanwhile_is_old() -> None:
    made = without_collector(lambda: [[0]])
    assert _is_old(made)
    assert _is_old(made[0])


class _Cycle:
    def __init__(self) -> None:
        self.itself = self


def test_garbage_does_not_become_old_with_it() -> None:
    """It would lie there, with the tensors that it may hold, until a full pass."""
    gone = ref(_Cycle())
    assert without_collector(gone) is None


def test_nor_does_garbage_that_is_no_longer_young() -> None:
    kept = _Cycle()
    gone = ref(kept)
    gc.collect(0)
    del kept
    assert without_collector(gone) is None


def test_nobody_comes_between_freezing_and_thawing(monkeypatch: pytest.MonkeyPatch) -> None:
    enabled: list[bool] = []

    def freeze() -> None:
        enabled.append(gc.isenabled())
        gc.freeze()

    monkeypatch.setattr(collector, "gc", SimpleNamespace(**{**vars(gc), "freeze": freeze}))
    without_collector(lambda: None)
    assert enabled == [False]


def test_what_somebody_froze_stays_frozen() -> None:
    frozen: list[list[int]] = [[]]
    gc.freeze()
    try:
        made = without_collector(lambda: [[0]])
        assert gc.get_freeze_count() > 0
        assert not _is_old(frozen)
        assert not _is_old(made)
    finally:
        gc.unfreeze()


def test_nothing_is_left_frozen() -> None:
    without_collector(lambda: None)
    assert gc.get_freeze_count() == 0


def _pause(times: int) -> None:
    for _ in range(times):
        without_collector(lambda: None)


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


def _half_as_many_objects() -> int:
    """As what is old: a quarter brings a full pass about."""
    return len(gc.get_objects(generation=2)) // 2


def _full_passes_of(work: Callable[[], object]) -> int:
    """How many came while something was made, which is kept so long."""
    gc.collect()
    passes = _full_passes()
    made = work()
    passes = _full_passes() - passes
    del made
    return passes


def test_many_new_objects_bring_a_full_pass_about() -> None:
    assert _full_passes_of(lambda: _made(_half_as_many_objects())) > 0  # or the next test would show nothing


def test_full_passes_are_put_off_and_those_that_were_do_not_come_afterwards() -> None:
    def work() -> object:
        put_off_full_passes()
        made = _made(_half_as_many_objects())
        allow_full_passes()
        return made + _made(2 * THRESHOLDS[0] * THRESHOLDS[1])

    assert _full_passes_of(work) == 0
    assert gc.get_threshold() == THRESHOLDS


def test_they_are_not_put_off_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planning that fails does not say that it has ended."""
    many = _half_as_many_objects()
    monkeypatch.setattr(collector, "OBJECTS_BETWEEN", many)

    def work() -> object:
        for _ in range(2):  # nor by who tries again
            put_off_full_passes()
            made = _made(many)
        return made

    assert _full_passes_of(work) > 0
    assert gc.get_threshold() != THRESHOLDS


def test_young_garbage_is_found_meanwhile_and_all_of_it_by_who_asks() -> None:
    old = _Cycle()
    gc.collect()
    put_off_full_passes()
    gone, young = ref(old), ref(_Cycle())
    kept = _made(2 * THRESHOLDS[0])
    assert young() is None
    del old
    assert gone() is not None
    gc.collect()
    assert gone() is None
    del kept
    allow_full_passes()


@pytest.mark.parametrize(("young", "middle", "seldom"), [(700, 10, 285), (2000, 10, 100), (100, 0, 20_000)])
def test_as_many_objects_lie_between_full_passes_whatever_brings_about_the_others(
    young: int, middle: int, seldom: int
) -> None:
    gc.set_threshold(young, middle, 7)
    put_off_full_passes()
    assert gc.get_threshold() == (young, middle, seldom)
    allow_full_passes()
    assert gc.get_threshold() == (young, middle, 7)


def test_what_is_given_back_is_what_was_there_this_time() -> None:
    put_off_full_passes()
    allow_full_passes()
    gc.set_threshold(600, 9, 5)
    put_off_full_passes()
    allow_full_passes()
    assert gc.get_threshold() == (600, 9, 5)


def test_who_has_asked_for_fewer_keeps_his_own() -> None:
    thresholds = 50_000, 20, 100
    gc.set_threshold(*thresholds)
    put_off_full_passes()
    assert gc.get_threshold() == thresholds
    allow_full_passes()
    assert gc.get_threshold() == thresholds


def test_two_put_them_off_and_the_first_end_counts() -> None:
    put_off_full_passes()
    put_off_full_passes()
    allow_full_passes()
    assert gc.get_threshold() == THRESHOLDS
    allow_full_passes()
    assert gc.get_threshold() == THRESHOLDS


@pytest.mark.parametrize(
    ("his", "afterwards"), [((500, 6, 5), (500, 6, 5)), ((500,), (500, *THRESHOLDS[1:]))], ids=["all", "the first"]
)
def test_who_sets_thresholds_meanwhile_keeps_his_own(his: tuple[int, ...], afterwards: tuple[int, ...]) -> None:
    put_off_full_passes()
    gc.set_threshold(*his)
    allow_full_passes()
    assert gc.get_threshold() == afterwards


def test_what_is_given_back_is_not_what_was_put_there_before() -> None:
    put_off_full_passes()
    gc.set_threshold(THRESHOLDS[0] // 2)
    put_off_full_passes()
    allow_full_passes()
    assert gc.get_threshold() == (THRESHOLDS[0] // 2, *THRESHOLDS[1:])


def test_who_sets_what_he_has_seen_meanwhile_has_it_until_the_next_time() -> None:
    put_off_full_passes()
    seen = gc.get_threshold()
    allow_full_passes()
    gc.set_threshold(*seen)
    put_off_full_passes()
    allow_full_passes()
    assert gc.get_threshold() == THRESHOLDS


@pytest.mark.parametrize("off", [gc.disable, lambda: gc.set_threshold(0)], ids=["disabled", "no threshold"])
def test_nothing_is_put_off_where_the_collector_is_off(off: Callable[[], None]) -> None:
    off()
    thresholds = gc.get_threshold()
    put_off_full_passes()
    assert gc.get_threshold() == thresholds
    allow_full_passes()
    assert gc.get_threshold() == thresholds


STATE = {f"layer.{number}": torch.full((4,), number) for number in range(20)}

#: A planner's steps, and whether the thresholds are as they were.
STEPS = {
    DefaultSavePlanner: {"create_local_plan": False, "create_global_plan": False, "resolve_data": True},
    DefaultLoadPlanner: {"create_local_plan": False, "create_global_plan": False, "resolve_tensor": True},
}


def _planner(kind: type[Any], as_they_were: dict[str, bool], fails_at: str | None = None) -> Any:
    """A planner that notes at which steps the thresholds are as they were."""
    planner = kind()

    def note(step: str, method: Callable[..., object], *args: object) -> object:
        as_they_were[step] = gc.get_threshold() == THRESHOLDS
        if step == fails_at:
            raise ValueError("as meant")
        return method(*args)

    for step in STEPS[kind]:
        setattr(planner, step, partial(note, step, getattr(planner, step)))
    return planner


@pytest.mark.parametrize("kind", STEPS)
def test_they_are_put_off_while_dcp_plans(local: Place, kind: type[Any]) -> None:
    as_they_were: dict[str, bool] = {}
    planner = _planner(kind, as_they_were)
    if kind is DefaultLoadPlanner:
        local.save(STATE)
        local.load(STATE, planner=planner)
    else:
        local.save(STATE, planner=planner)
    assert as_they_were == STEPS[kind]


@pytest.mark.parametrize("step", ["create_local_plan", "create_global_plan"])
def test_the_next_that_is_planned_ends_what_planning_that_fails_has_left(local: Place, step: str) -> None:
    local.save(STATE)
    for fail in (
        lambda: local.save(STATE, planner=_planner(DefaultSavePlanner, {}, step), overwrite=True),
        lambda: local.load(STATE, planner=_planner(DefaultLoadPlanner, {}, step)),
    ):
        with pytest.raises(CheckpointException):
            fail()
        assert gc.get_threshold() != THRESHOLDS
        local.load(STATE)
        assert gc.get_threshold() == THRESHOLDS
