"""Python's cyclic garbage collector, kept away while thousands of objects are made at once.

It finds nothing in the objects that pickling, unpickling and plans are made of, but looks at all of them again and
again, and at everything else in the process as often as they have become a quarter more. It is the process's, and other
threads make garbage, too: it is paused only where nothing waits and no user code runs (``collector_paused``). While DCP
and the user's planner plan, it only puts its full passes off (``put_off_full_passes``).
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer

#: The generation of what has lived for long enough to be left alone, but by full passes.
_OLDEST = 2

#: As many may be frozen that nobody froze: Python 3.12.1 starts with 375. A ``gc.freeze`` makes it thousands, at least
#: 5400 there.
_FROZEN_BY_PYTHON = 1000

#: What we do to make objects old has the collector forget how long ago its last full pass was. After so many times, of
#: which a save has two to four and a load one, we make one: a program that does little else would never see another.
MOST_FREEZES = 32

#: Planning that fails does not tell us, so full passes are not put off for longer. DCP plans for 20,000 tensors in 1 s.
LONGEST_S = 30.0

#: The threshold of the oldest generation while they are: no process comes so far. Nobody else sets it to this.
_PUT_OFF = 1_000_000_007


class _SinceFullPass:
    """How often the collector has been made to forget since its last full pass, the ``passes``-th."""

    passes = 0
    freezes = 0


_since = _SinceFullPass()


class _Before:
    """The threshold that ``_PUT_OFF`` stands in the place of, and what ends that in time."""

    threshold = gc.get_threshold()[_OLDEST]
    clock: Timer | None = None


_before = _Before()


@contextmanager
def collector_paused() -> Iterator[None]:
    """Without the collector, if it was running; what has been made meanwhile counts as old at once.

    So the passes that follow do not look at it, as they do at all that is young, until a full one does. That nothing
    else is spared with it, what was young before is collected first. Who has frozen objects himself (``gc.freeze``)
    keeps them so, and the new ones stay young.
    """
    if not _is_on():
        yield
        return
    gc.collect(_OLDEST if _is_full_pass_due() else _OLDEST - 1)
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() <= _FROZEN_BY_PYTHON:
            gc.freeze()
            gc.unfreeze()  # which leaves them in the oldest generation
            _since.freezes += 1
        gc.enable()


def _is_on() -> bool:
    return gc.isenabled() and gc.get_threshold()[0] > 0


def _is_full_pass_due() -> bool:
    passes = gc.get_stats()[_OLDEST]["collections"]
    if passes != _since.passes:
        _since.passes, _since.freezes = passes, 0
    return _since.freezes >= MOST_FREEZES


def put_off_full_passes() -> None:
    """Have the collector make no full pass until ``allow_full_passes``, or ``LONGEST_S`` have passed.

    It goes on with what is young, and ``gc.collect()`` finds everything. Threads may come to both functions in any
    order, and Ctrl-C anywhere: a clock is stopped only by who has a later one, or has allowed passes since it ran.
    """
    if not _is_on():
        return
    young, middle, oldest = gc.get_threshold()
    if oldest != _PUT_OFF:
        _before.threshold = oldest
    clock = Timer(LONGEST_S, _restore)
    clock.daemon = True
    try:
        gc.set_threshold(young, middle, _PUT_OFF)
        clock.start()
    except RuntimeError:  # no thread can be had: passes come as they come
        _restore()
        return
    except BaseException:
        _restore()
        raise
    earlier, _before.clock = _before.clock, clock
    if earlier is not None:
        earlier.cancel()


def allow_full_passes() -> None:
    """The end of what ``put_off_full_passes`` began; what has been made meanwhile counts as old, and brings none about.

    Who has set the threshold himself meanwhile keeps his own.
    """
    clock = _before.clock
    with collector_paused():
        _restore()
    if clock is not None:
        clock.cancel()


def _restore() -> None:
    young, middle, oldest = gc.get_threshold()
    if oldest == _PUT_OFF:
        gc.set_threshold(young, middle, _before.threshold)


os.register_at_fork(after_in_child=_restore)  # where no clock runs
