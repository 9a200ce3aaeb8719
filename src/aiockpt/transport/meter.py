"""How far a request's body has come, for whoever asked for the request.

One job: stand between the one who sends, who changes with each try, and the one who wants to know, on another thread
perhaps. It knows no sockets.
"""

from __future__ import annotations

from collections.abc import Callable


class Meter:
    """Bytes of a body that have come to the peer, as far as that is known. See the module."""

    __slots__ = ("_last", "_read")

    def __init__(self) -> None:
        self._last = 0
        self._read: Callable[[], int] | None = None

    @property
    def nbytes(self) -> int:
        """How many they are in the present try, or were in the last one."""
        read = self._read
        if read is not None:
            self._last = read()
        return self._last

    def begin(self, read: Callable[[], int]) -> None:
        """A try begins, of which ``read`` tells."""
        self._read = read

    def end(self) -> None:
        """It has ended."""
        _ = self.nbytes
        self._read = None
