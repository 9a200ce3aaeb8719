"""How many requests run at once: found out while bytes move.

One job: a limit, from observed throughput. It has no clock (callers give the time in seconds of any monotonic clock),
starts nothing and cancels nothing: callers start no request while ``limit`` or more are running. What the service says
when it is asked for too much is the job of ``prefixes``.

The limit is doubled while that raises throughput, and from then on raised by an eighth at a time: a raise
that brings 8 % more is kept and followed by the next; one that does not is taken back, and another is tried
some windows later, so that the limit follows a link that has become wider but does not grow where more
connections only cost CPU (loopback, a saturated NIC). While the thread that moves the bytes is the bound, it stays:
windows on a fast machine are few and noisy, and would look worthwhile sooner or later. Then fewer and larger requests
are what helps, and this module says so (``busy``). Throughput is never a reason to lower the limit below what once
paid: it also falls when there is less to do, which this module cannot see.

The times are chosen for the shortest load worth tuning for: 1.2 GB at 1.5 GB/s, 0.8 s. A window of 100 ms
holds several round trips within a region (1-20 ms) and thousands of reads, and five steps of settling and
measuring fit into the load.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable

#: Over which throughput is measured.
WINDOW_S = 0.1

#: After a change, what moves for so long is not counted: new connections are being opened (TCP and TLS take
#: two to three round trips, a first byte of S3 10-30 ms), or requests beyond a lowered limit are ending.
SETTLE_S = 0.05

#: Least growth of throughput for which a raise is kept. Where connections are the bound, an eighth more bring
#: 12 %; a few percent are noise.
WORTHWHILE_GAIN = 1.08

#: Windows between a raise that brought nothing and the next attempt: a tenth of the time is spent on it.
HOLD_WINDOWS = 10


#: Share of a window in which the thread was busy, from which on more connections are not tried.
BUSY_SHARE = 0.7

#: From which share on it counts as the bound, and below which it does no more; larger requests alone save it up to a
#: seventh of its work. On a slow machine a link of 1.5 GB/s keeps it busy for half of the time, with moments of 0.7,
#: and loopback for three quarters.
BOUND_SHARE = 0.8
FREE_SHARE = 0.6


class _Phase(enum.Enum):
    DOUBLING = enum.auto()  # the limit has just been doubled, or is the first
    CLIMBING = enum.auto()  # it has just been raised by an eighth
    HOLDING = enum.auto()  # it stays for some windows


def start_connections(target_gbps: float, largest: int) -> int:
    """How many requests at once to begin with, for a link of ``target_gbps`` gigabits a second; at most ``largest``.

    One connection to S3 carries 85-90 MB/s ("Performance design patterns for Amazon S3", AWS documentation), and some
    50 MB/s once the first-byte latency of 8 MiB requests is counted in. Fewer than four are not worth it anywhere.
    """
    return min(largest, max(4, math.ceil(target_gbps * 125e6 / 50e6)))


class ConcurrencyController:
    """The limit and what it is decided by.

    Args:
        largest: greatest limit.
        start: the first limit.
        cpu_s: CPU seconds that the thread which moves the bytes has spent so far.

    Attributes:
        busy: whether that thread was the bound lately.
    """

    def __init__(self, largest: int, start: int, cpu_s: Callable[[], float] = lambda: 0.0) -> None:
        self._largest = largest
        self._cpu_s = cpu_s
        self.busy = False
        self._limit = start
        self._phase = _Phase.DOUBLING
        self._fallback = start  # the limit, should the last raise bring nothing
        self._reference = 0.0  # throughput that a raise has to exceed, bytes/s
        self._windows_to_hold = 0
        self._ended_at = -math.inf  # when a request did, last
        self._settled_at = -math.inf
        self._opened_at = math.inf  # of the window; no window is open before
        self._bytes = 0
        self._completed = 0
        self._spent_before_s = 0.0

    @property
    def limit(self) -> int:
        """How many requests may run at once."""
        return self._limit

    def on_begin(self, now: float) -> None:
        """Note that a load or save begins. If nothing ended just before, a window reaching over that is not judged."""
        if now - self._ended_at > WINDOW_S:
            self._settle(now)

    def on_complete(self, nbytes: int, now: float) -> None:
        """Note that a request of ``nbytes`` has ended. A window then lasts for as many as may run at once."""
        self._ended_at = now
        if self._counts(now):
            self._bytes += nbytes
            self._completed += 1
            if self._completed >= self._limit and now - self._opened_at >= WINDOW_S:
                self._close(now)

    def _counts(self, now: float) -> bool:
        """Whether a report falls into a window. The first after settling opens one: it is about before."""
        if self._opened_at <= now:
            return True
        if self._settled_at <= now:
            self._open(now)
        return False

    def _settle(self, now: float) -> None:
        self._settled_at = now + SETTLE_S
        self._opened_at = math.inf

    def _open(self, now: float) -> None:
        self._opened_at = now
        self._spent_before_s = self._cpu_s()
        self._bytes = 0
        self._completed = 0

    def _close(self, now: float) -> None:
        """Judge the window that ends now."""
        seconds = now - self._opened_at
        rate = self._bytes / seconds
        spent = (self._cpu_s() - self._spent_before_s) / seconds
        self.busy = spent >= (FREE_SHARE if self.busy else BOUND_SHARE)
        self._open(now)
        if self._phase is _Phase.HOLDING:
            # The best of several windows: noise must not make a raise look worthwhile.
            self._reference = max(self._reference, rate)
            self._windows_to_hold -= 1
            if self._windows_to_hold:
                return
            self._phase = _Phase.CLIMBING
        elif rate > self._reference * WORTHWHILE_GAIN:
            self._reference = rate
        else:
            self._hold(self._fallback, now)
            return
        if spent >= BUSY_SHARE:
            self._hold(self._limit, now)
        else:
            self._raise(now)

    def _raise(self, now: float) -> None:
        before = self._limit
        if self._phase is _Phase.DOUBLING:
            raised = 2 * before
            # A window can miss the pauses between a connection's requests, in which only others fill it.
            self._fallback = min(self._largest, before + before // 4)
        else:
            raised = before + -(-before // 8)
            self._fallback = before
        self._limit = min(self._largest, raised)
        self._settle(now)

    def _hold(self, limit: int, now: float) -> None:
        self._limit = limit
        self._phase = _Phase.HOLDING
        self._reference = 0.0
        self._windows_to_hold = HOLD_WINDOWS
        self._settle(now)
