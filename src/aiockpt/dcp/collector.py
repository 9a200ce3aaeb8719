"""Python's cyclic garbage collector, kept away while thousands of objects are made at once.

It finds nothing in the objects that pickling, unpickling and the items of a plan are made of, but looks at all of them
again and again. Nothing waits and no user code runs while it is paused: it is the process's, and other threads make
garbage, too.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

#: The generation of what has lived for long enough to be left alone, but by full passes.
_OLDEST = 2

#: As many may be frozen that nobody froze: Python 3.12.1 starts with 375. A ``gc.freeze`` makes it thousands, at least
#: 5400 there.
_FROZEN_BY_PYTHON = 1000

#: What we do to make objects old has the collector forget how long ago its last full pass was. After so many times, of
#: which a save has two to four and a load one, we make one: a program that does little else would never see another.
MOST_FREEZES = 32


class _SinceFullPass:
    """How often the collector has been made to forget since its last full pass, the ``passes``-th."""

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
    if not gc.isenabled() or not gc.get_threshold()[0]:
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


def _is_full_pass_due() -> bool:
    passes = gc.get_stats()[_OLDEST]["collections"]
    if passes != _since.passes:
        _since.passes, _since.freezes = passes, 0
    return _since.freezes >= MOST_FREEZES
