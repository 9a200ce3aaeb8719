"""What the kernel holds of the bytes that a socket was given to send.

One job: say how much that is, and throw it away. The kernel takes some MiB for a peer that reads none, a whole part
perhaps: so what it has taken says little about how far a request has come, and when the socket is closed it goes on
sending that. This module knows no loop.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from contextlib import suppress


class SendQueue:
    """The send queue of a socket, which it closes. Without a socket nothing is known, and it is taken for empty.

    How much it holds may be asked from any thread.
    """

    def __init__(self, sock: socket.socket | None) -> None:
        self._socket = sock
        self._left_bytes = 0

    @property
    def unacknowledged_bytes(self) -> int:
        """Bytes that the peer's kernel has not acknowledged; once it is closed, those at that time."""
        sock = self._socket
        return self._left_bytes if sock is None else _queued_bytes(sock)

    def discard(self) -> None:
        """Have what is left when the socket is closed thrown away, and the peer told by a reset."""
        if self._socket is None:
            return
        with suppress(OSError):  # BSDs refuse it where the peer has closed, and nothing is sent any more
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def close(self) -> None:
        """Close the socket; idempotent."""
        if self._socket is not None:
            self._left_bytes = _queued_bytes(self._socket)
            self._socket.close()
            self._socket = None


def _queued_bytes(sock: socket.socket) -> int:
    try:
        answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, struct.pack("i", 0))  # SIOCOUTQ by its older name
    except (OSError, ValueError):  # a system that does not tell, or another thread has just closed it
        return 0
    queued: int = struct.unpack("i", answer)[0]
    return queued
