"""Python's cyclic garbage collector, kept from looking again and again at what is no garbage.

Plans and metadata are thousands of objects that stay for a while. They make the collector look at all that is young,
and in the end at everything in the process, with the GIL held: 0.2 to 0.3 s each time where little more than torch has
been imported. While our own code makes them, and nothing waits and no user code runs, the collector is off
(``collector_paused``). While DCP and the user's planner do, it goes on, and looks only at what is new (``set_aside``).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import monotonic

#: The generation of what has lived for long enough to be left alone, but by full passes.
_OLDEST = 2

#: As many may be frozen that nobody froze: Python 3.12.1 starts with 375. A ``gc.freeze`` makes it thousands, at least
#: 5400 there.
_FROZEN_BY_PYTHON = 1000

#: Planning that fails does not tell us. What was set aside for longer is taken back by the next pass.
LONGEST_ASIDE_S = 60.0


class _Aside:
    """Until when objects are set aside; None: none are.

    Threads may come here in any order: it is noted after freezing and forgotten before thawing, so that nothing stays
    frozen without it.
    """

    until: float | None = None


_aside = _Aside()


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
    gc.collect(_OLDEST - 1)
    gc.disable()
    try:
        yield
    finally:
        if _aside.until is None and not _somebody_froze():
            gc.freeze()
            gc.unfreeze()  # which leaves them in the oldest generation
        gc.enable()


def set_aside() -> None:
    """Have the collector look at nothing but what is made from now on, until ``take_back``; may be repeated.

    What was young garbage is collected first; what is old and becomes garbage meanwhile is found by the first full pass
    afterwards. Nothing is done if the collector is off, or if somebody has frozen objects himself (``gc.freeze``); who
    does so meanwhile has it undone.
    """
    if not gc.isenabled() or (_aside.until is None and _somebody_froze()):
        return
    gc.collect(_OLDEST - 1)
    gc.freeze()
    _aside.until = monotonic() + LONGEST_ASIDE_S
    if _on_pass not in gc.callbacks:
        gc.callbacks.append(_on_pass)


def take_back() -> None:
    """Have the collector look at everything again; does nothing if nothing has been set aside."""
    if _aside.until is not None:
        _aside.until = None
        gc.unfreeze()


def _somebody_froze() -> bool:
    return gc.get_freeze_count() > _FROZEN_BY_PYTHON


def _on_pass(phase: str, _: Mapping[str, int]) -> None:
    if phase == "start" and _aside.until is not None and monotonic() > _aside.until:
        take_back()
