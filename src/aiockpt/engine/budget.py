"""The byte budget: one bound over everything staged in memory, shared by all saves and loads of an engine.

``try_reserve`` may refuse; ``reserve`` waits, and gets through in the end: a request larger than the whole budget is
granted when nothing else is reserved. Thread-safe: staging happens on the callers' threads.

To keep clear of deadlock, ``reserve`` is for those who hold nothing that only they can release; others use
``try_reserve`` and, when it refuses, release something, or ``overdraw`` if they have nothing to release yet.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

#: Longest wait at a time: a signal that comes just before a wait does not interrupt it. See ``bridge.waiting``.
WAKE_S = 0.5


class ByteBudget:
    """See the module.

    Attributes:
        limit_bytes: the bound.
        reserved_bytes: what is reserved now.
        peak_bytes: the most that was ever reserved.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.reserved_bytes = 0
        self.peak_bytes = 0
        self._freed = threading.Condition()

    def try_reserve(self, nbytes: int) -> bool:
        """Reserve if there is room now."""
        with self._freed:
            return self._take_if_room(nbytes)

    def reserve(self, nbytes: int, give_up: Callable[[], bool] = lambda: False) -> bool:
        """Reserve, waiting for room; blocks the thread, so never call it on a loop thread.

        Returns:
            False if ``give_up()`` became true first (looked at whenever something is released); nothing is reserved.
        """
        with self._freed:
            while not (taken := self._take_if_room(nbytes)) and not give_up():
                self._freed.wait(WAKE_S)
            return taken

    def overdraw(self, nbytes: int) -> None:
        """Reserve without waiting and beyond the bound: for those for whom waiting would be for ever."""
        with self._freed:
            self._take(nbytes)

    def release(self, nbytes: int) -> None:
        """Give back what was reserved."""
        with self._freed:
            self.reserved_bytes -= nbytes
            assert self.reserved_bytes >= 0, "released more than was reserved"
            self._freed.notify_all()

    def _take_if_room(self, nbytes: int) -> bool:
        if self.reserved_bytes and self.reserved_bytes + nbytes > self.limit_bytes:
            return False
        self._take(nbytes)
        return True

    def _take(self, nbytes: int) -> None:
        self.reserved_bytes += nbytes
        self.peak_bytes = max(self.peak_bytes, self.reserved_bytes)
