"""Where a response body goes: a cursor over the memory that it lands in.

One job: hand out the next writable stretch and remember how far the bytes have come. It knows no sockets.
"""

from __future__ import annotations

from collections.abc import Sequence


class Landing:
    """A scatter list of writable memory, filled from front to back exactly once.

    The views belong to the caller, who keeps the memory behind them alive until the exchange has ended.

    Attributes:
        total: bytes that the views hold together.
        landed: bytes that have arrived.
    """

    __slots__ = ("_current", "_index", "_views", "landed", "total")

    def __init__(self, views: Sequence[memoryview]) -> None:
        self._views = [view for view in views if len(view)]
        self._index = 0
        self._current = self._views[0] if self._views else memoryview(b"")
        self.total = sum(map(len, self._views))
        self.landed = 0

    @property
    def remaining(self) -> int:
        """Bytes still to come."""
        return self.total - self.landed

    def fork(self) -> Landing:
        """Another cursor over the same memory, from the same byte on: two transfers may land the same bytes.

        From any thread, while this one moves on: all that is read of it is how far it has come.
        """
        other = Landing(self._views)
        ahead = self.landed
        while ahead:
            step = min(ahead, len(other.buffer()))
            other.advance(step)
            ahead -= step
        return other

    def buffer(self) -> memoryview:
        """The next stretch to be written; empty only when everything has landed."""
        return self._current

    def advance(self, nbytes: int) -> None:
        """Note that ``nbytes`` were written to the start of ``buffer()``."""
        self.landed += nbytes
        if nbytes < len(self._current):
            self._current = self._current[nbytes:]
            return
        self._index += 1
        self._current = self._views[self._index] if self._index < len(self._views) else memoryview(b"")

    def copy_in(self, data: memoryview) -> int:
        """Copy as much of ``data`` as fits; returns how much that was.

        For the few bytes that arrive together with a response head, and for bodies that must be decoded.
        """
        copied = 0
        while copied < len(data) and (target := self._current):
            size = min(len(target), len(data) - copied)
            target[:size] = data[copied : copied + size]
            self.advance(size)
            copied += size
        return copied
