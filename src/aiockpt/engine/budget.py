"""The byte budget: one bound over everything staged in memory, shared by all saves and loads of an engine.

``try_reserve`` may refuse; ``reserve`` waits, and always gets through in the end: a request larger than the whole
budget is granted when nothing else is reserved. Thread-safe: staging happens on the callers' threads.

To keep clear of deadlock, a caller who holds reservations that only it can release uses ``try_reserve`` and releases
something when refused; it calls ``reserve`` only while it holds nothing.
"""

from __future__ import annotations

import threading


class ByteBudget:
    """See the module.

    Attributes:
        limit_bytes: the bound.
        reserved_bytes: what is reserved now; above the limit only while one oversized reservation stands alone.
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

    def reserve(self, nbytes: int) -> None:
        """Reserve, waiting for room; blocks the thread, so never call it on a loop thread."""
        with self._freed:
            self._freed.wait_for(lambda: self._take_if_room(nbytes))

    def release(self, nbytes: int) -> None:
        """Give back what was reserved."""
        with self._freed:
            self.reserved_bytes -= nbytes
            assert self.reserved_bytes >= 0, "released more than was reserved"
            self._freed.notify_all()

    def _take_if_room(self, nbytes: int) -> bool:
        if self.reserved_bytes and self.reserved_bytes + nbytes > self.limit_bytes:
            return False
        self.reserved_bytes += nbytes
        self.peak_bytes = max(self.peak_bytes, self.reserved_bytes)
        return True
