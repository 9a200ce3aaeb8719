"""The network that the endpoint pretends to be behind: latency and bandwidth. Pure: the clock is an argument.

Bandwidth is kept by scheduling, not by counting: each run of bytes is given the time at which a line of the
given rate, serving all runs one after the other, would have passed its last byte. Directions do not share
their bandwidth.
"""

from __future__ import annotations

from dataclasses import dataclass

from aiockpt.model import KiB

#: How far a line may catch up after a timer came late (libuv's tick is 1 ms), and so the longest burst after
#: a pause.
_SLACK_S = 0.02

#: A shaped transfer moves in runs of about this many seconds at its rate, within these bounds.
_RUN_S = 0.01
_RUN_MIN_BYTES = 16 * KiB
_RUN_MAX_BYTES = 256 * KiB


@dataclass(frozen=True, slots=True)
class Shape:
    """What the network is like.

    Attributes:
        first_byte_latency_s: seconds between a complete request and the first byte of its answer.
        connection_bytes_per_s: bandwidth of each connection and direction; None: as fast as it goes.
        total_bytes_per_s: bandwidth of all connections together, of each direction; None: as fast as it goes.
    """

    first_byte_latency_s: float = 0.0
    connection_bytes_per_s: float | None = None
    total_bytes_per_s: float | None = None

    @property
    def run_bytes(self) -> int | None:
        """How many bytes move at a time; None: bandwidth is not limited."""
        rates = [rate for rate in (self.connection_bytes_per_s, self.total_bytes_per_s) if rate is not None]
        if not rates:
            return None
        return max(_RUN_MIN_BYTES, min(_RUN_MAX_BYTES, int(min(rates) * _RUN_S)))


class Line:
    """A stretch of network that bytes pass one after the other."""

    def __init__(self) -> None:
        self._free_at = 0.0

    def passed_at(self, nbytes: int, bytes_per_s: float | None, now: float) -> float:
        """Queue ``nbytes``; returns the time in seconds at which the last of them has passed."""
        if bytes_per_s is None:
            return now
        self._free_at = max(self._free_at, now - _SLACK_S) + nbytes / bytes_per_s
        return self._free_at


class Network:
    """The current shape, and the line that all connections share in one direction or the other."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.shared_in = Line()
        self.shared_out = Line()


class Lane:
    """One direction of one connection: its own line, then the shared one."""

    def __init__(self, network: Network, shared: Line) -> None:
        self._network = network
        self._shared = shared
        self._own = Line()

    @property
    def run_bytes(self) -> int | None:
        """See ``Shape.run_bytes``."""
        return self._network.shape.run_bytes

    def delay_s(self, nbytes: int, now: float) -> float:
        """Queue ``nbytes``; returns how many seconds from ``now`` they take to pass."""
        shape = self._network.shape
        own = self._own.passed_at(nbytes, shape.connection_bytes_per_s, now)
        shared = self._shared.passed_at(nbytes, shape.total_bytes_per_s, now)
        return max(own, shared) - now
