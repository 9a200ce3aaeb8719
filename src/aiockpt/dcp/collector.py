"""Python's cyclic garbage collector, kept away while thousands of objects are made at once.

It finds nothing in the objects that pickling, unpickling and plans are made of, but looks at all of them again and
again, and at everything else in the process as often as they have become a quarter more. It is the process's, and other
threads make garbage, too: it is off only where nothing waits and no user code runs (``without_collector``). While DCP
and the user's planner plan, its full passes are put off (``put_off_full_passes``).
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: The generation of what has lived for long enough to be left alone, but by full passes.
_OLDEST = 2

#: As many may be frozen that nobody froze: Python 3.12.1 starts with 375. A ``gc.freeze`` makes it thousands, at least
#: 5400 there.
_FROZEN_BY_PYTHON = 1000

#: To have objects made old makes the collector forget how long ago its last full pass was. After so many times, of
#: which a save of one object has three and a load two, we make one: a program that does little else would never see
#: another.
MOST_FREEZES = 32

#: While DCP plans, no full pass comes before so many new objects stand, as a save of 150,000 tensors makes; else 70,000
#: would be enough. It is no more, as planning that fails does not tell us, and leaves it so until another ends.
OBJECTS_BETWEEN = 2_000_000


class _SinceFullPass:
    """How often the collector has been made to forget since its last full pass, the ``passes``-th."""

    passes = 0
    freezes = 0


_since = _SinceFullPass()


class _Oldest:
    """The threshold of the oldest generation while full passes are put off, and what it was before."""

    meanwhile: int | None = None
    before = 0


_oldest = _Oldest()


def without_collector(work: Callable[[], T]) -> T:
    """``work()`` without the collector, if it was running; what has been made meanwhile counts as old at once.

    So the passes that follow do not look at it, as they do at all that is young, until a full one does. That nothing
    else is spared with it, what was young before is collected first. Who has frozen objects himself (``gc.freeze``)
    keeps them so, and the new ones stay young. Ctrl-C anywhere leaves the collector running.
    """
    if not _is_on():
        return work()
    gc.collect(_OLDEST if _is_full_pass_due() else _OLDEST - 1)
    try:
        gc.disable()
        return work()
    finally:
        try:
            _make_old()
        finally:
            gc.enable()


def _make_old() -> None:
    if gc.get_freeze_count() > _FROZEN_BY_PYTHON:
        return
    _since.freezes += 1
    try:
        gc.freeze()
    finally:
        gc.unfreeze()  # which leaves them in the oldest generation


def _is_on() -> bool:
    return gc.isenabled() and gc.get_threshold()[0] > 0


def _is_full_pass_due() -> bool:
    passes = gc.get_stats()[_OLDEST]["collections"]
    if passes != _since.passes:
        _since.passes, _since.freezes = passes, 0
    return _since.freezes >= MOST_FREEZES


def put_off_full_passes() -> None:
    """Have the collector make fewer full passes, until ``allow_full_passes``; who has asked for as few keeps his own.

    It goes on with what is young, and ``gc.collect()`` finds everything. Threads may come to both functions in any
    order: at the worst a pass comes while one of them plans.
    """
    if not _is_on():
        return
    young, middle, oldest = gc.get_threshold()
    seldom = OBJECTS_BETWEEN // (young * (middle or 1))
    if oldest < seldom and oldest != _oldest.meanwhile:  # else it is ours: planning failed, or another thread plans
        _oldest.before, _oldest.meanwhile = oldest, seldom
        gc.set_threshold(young, middle, seldom)


def allow_full_passes() -> None:
    """The end of what ``put_off_full_passes`` began, for all threads; who has set another threshold meanwhile keeps it.

    What has been made meanwhile counts as old, so that it does not bring the pass about at once that was put off.
    """
    without_collector(_give_back)


def _give_back() -> None:
    young, middle, oldest = gc.get_threshold()
    if oldest == _oldest.meanwhile:
        gc.set_threshold(young, middle, _oldest.before)
