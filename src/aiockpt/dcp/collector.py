"""Python's cyclic garbage collector, kept away while thousands of objects are made at once.

It finds nothing in the objects that pickling, unpickling and the items of a plan are made of, but looks at all of them
again and again, and in the end at everything in the process. It is the process's, and other threads make garbage, too:
it is paused only where nothing waits and no user code runs (``collector_paused``), and while the user's planner makes a
plan of plans, it goes on with what is new (``set_aside``).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import finalize

#: The generation of what has lived for long enough to be left alone, but by full passes.
_OLDEST = 2

#: As many may be frozen that nobody froze: Python 3.12.1 starts with 375. A ``gc.freeze`` makes it thousands, at least
#: 5400 there.
_FROZEN_BY_PYTHON = 1000

#: Freezing makes the collector forget how long ago its last full pass was. After so many times, of which a save has two
#: or three, we make one: a program that has little else to do with the collector would never see another.
MOST_FREEZES = 32


class _SinceFullPass:
    """How often it has been made to forget since a full pass, the ``passes``-th."""

    passes = 0
    freezes = 0


_since = _SinceFullPass()


@contextmanager
def collector_paused() -> Iterator[None]:
    """Without the collector, if it was running; what has been made meanwhile counts as old at once.

    So the passes that follow do not look at it, as they do at all that is young, until a full one does. That nothing
    else is spared with it, what was young before is collected first. Who has frozen objects himself (``gc.freeze``)
    keeps them so, and the new ones stay young.
    """
    if not gc.isenabled():
        yield
        return
    _collect_young()
    gc.disable()
    try:
        yield
    finally:
        if not _somebody_froze():
            gc.freeze()
            gc.unfreeze()  # which leaves them in the oldest generation
        gc.enable()


def set_aside(plan: object) -> Callable[[], object]:
    """Have the collector look only at what is made from now on, until what is returned is called, or ``plan`` is gone.

    So it ends if planning fails, of which nobody tells us. What was young garbage is collected first; what is old and
    becomes garbage meanwhile is found by the first full pass afterwards. Nothing changes if the collector is off, or if
    somebody has frozen objects himself (``gc.freeze``); who does so meanwhile has it undone.
    """
    if not gc.isenabled() or _somebody_froze():
        return lambda: None
    _collect_young()
    ends = finalize(plan, gc.unfreeze)
    gc.freeze()
    return ends


def _somebody_froze() -> bool:
    return gc.get_freeze_count() > _FROZEN_BY_PYTHON


def _collect_young() -> None:
    """Collect what would become old by freezing, or everything if that was long ago."""
    passes = gc.get_stats()[_OLDEST]["collections"]
    if passes != _since.passes:
        _since.passes, _since.freezes = passes, 0
    _since.freezes += 1
    gc.collect(_OLDEST if _since.freezes > MOST_FREEZES else _OLDEST - 1)
