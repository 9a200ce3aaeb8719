"""Exit: the interpreter waits for background work that must not be lost, unless that was cancelled.

It waits where it joins threads, before `concurrent.futures` refuses work and the loop thread stops: later, nothing
could be finished any more. Ctrl-C while it waits cancels what is left, so that it is aborted and not just cut off.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading

from aiockpt.awaitable.background import Background
from aiockpt.awaitable.outcome import WIND_UP_S

logger = logging.getLogger("aiockpt")

_under_way: set[Background] = set()


def see_through_at_exit(work: Background) -> None:
    """Have the interpreter wait for ``work`` at exit, if it has not ended by then."""
    _under_way.add(work)
    work.when_done(lambda: _under_way.discard(work))


def wait_for_all() -> None:
    """Wait until all has ended that was not cancelled; an interruption cancels it. Failures were told elsewhere."""
    waited_for = [work for work in list(_under_way) if not work.cancelled]
    try:
        for work in waited_for:
            logger.info("waiting for a background save before the interpreter exits")
            work.wait()
    except KeyboardInterrupt:
        for work in waited_for:
            work.cancel()
        for work in waited_for:
            work.wait(WIND_UP_S)


def _forget_after_fork() -> None:
    """It goes on in the parent, which waits for it."""
    _under_way.clear()


os.register_at_fork(after_in_child=_forget_after_fork)

#: What runs where threads are joined is not public; `atexit` comes later, when little but an abort is possible.
_register = getattr(threading, "_register_atexit", atexit.register)
_register(wait_for_all)
