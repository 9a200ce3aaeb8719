"""What the kernel holds of the bytes that a socket was given to send.

One job: keep it small where that costs nothing, say how much it is, and throw it away. The kernel takes some MiB for a
peer that reads none, a whole part perhaps: so what it has taken says little about how far a request has come, and when
the socket is closed it goes on sending that. This module knows no loop.
"""

from __future__ import annotations

import fcntl
import math
import socket
import struct
import sys
import termios
from contextlib import suppress

from aiockpt.model import MiB

#: What the kernel may hold of one connection, where that fills the link. Its own bound grows to 4 MiB (tcp_wmem), and
#: with many connections that has left the caches before anybody reads it: over loopback a save took a fifth more CPU
#: time than with 512 KiB (Intel Xeon), and its server an eighth. Beside 512 KiB it takes 7 % less with 1 MiB, since the
#: loop is woken half as often, and 6 % more with 2 MiB (AMD EPYC). The kernel grants at most twice net.core.wmem_max.
SHORT_QUEUE_BYTES = MiB

#: Round trips in which 10 Gbit/s, more than one connection carries, fit into such a queue; 4 Gbit/s, where the kernel
#: grants the 416 KiB of its default. Over longer ones, as to another zone, a connection needs more on its way, and is
#: left to the kernel's bound.
SHORT_ROUND_TRIP_S = SHORT_QUEUE_BYTES * 8 / 10e9

#: Where ``tcpi_rtt`` lies in Linux's ``struct tcp_info`` (linux/tcp.h), in microseconds: behind 8 bytes and 15 numbers.
_ROUND_TRIP = struct.Struct("@68xI")


class SendQueue:
    """The send queue of a connected socket, which it closes, and keeps short if the peer is near.

    Without a socket nothing is known, and it is taken for empty.

    How much it holds may be asked from any thread.
    """

    def __init__(self, sock: socket.socket | None) -> None:
        self._socket = sock
        self._left_bytes = 0
        if sock is not None and round_trip_s(sock) <= SHORT_ROUND_TRIP_S:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SHORT_QUEUE_BYTES // 2)  # Linux doubles it: socket(7)

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


def round_trip_s(sock: socket.socket) -> float:
    """How long a byte and its acknowledgement take, as the kernel has seen; infinite where it does not tell."""
    if sys.platform != "linux":
        return math.inf
    try:
        answer = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ROUND_TRIP.size)
    except OSError:  # it is no TCP socket
        return math.inf
    microseconds: int = _ROUND_TRIP.unpack(answer)[0]
    return microseconds / 1e6 or math.inf  # 0: nothing has been acknowledged


def _queued_bytes(sock: socket.socket) -> int:
    try:
        answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, struct.pack("i", 0))  # SIOCOUTQ by its older name
    except (OSError, ValueError):  # a system that does not tell, or another thread has just closed it
        return 0
    queued: int = struct.unpack("i", answer)[0]
    return queued
