"""A clock that only sleeping and working move, and which calls and cuts as real ones do."""

from __future__ import annotations

import math
from collections.abc import Callable

import anyio


class VirtualClock:
    """See ``aiockpt.engine.clock.Clock``.

    Attributes:
        slept: every pause, in order.
    """

    def __init__(self) -> None:
        self.slept: list[float] = []
        self._now = 0.0
        self._limits: list[tuple[float, anyio.CancelScope]] = []
        self._calls: list[tuple[float, Callable[[], None]]] = []

    def now(self) -> float:
        return self._now

    async def sleep(self, delay_s: float) -> None:
        self.slept.append(delay_s)
        self._limits.clear()  # between attempts
        await self.work(delay_s)

    async def work(self, duration_s: float) -> None:
        """Let time pass; whoever does it is cut where a limit lies in it."""
        due = min((at for at, _ in self._limits), default=math.inf)
        until = min(self._now + duration_s, max(due, self._now))
        while self._calls and (call := min(self._calls, key=lambda call: call[0]))[0] <= until:
            self._calls.remove(call)
            self._now = call[0]
            call[1]()
        self._now = until
        for at, scope in self._limits:
            if at <= self._now:
                scope.cancel()
        await anyio.lowlevel.checkpoint()

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        self._calls.append((self._now + delay_s, callback))

    def cut_after(self, limit_s: float) -> anyio.CancelScope:
        self._limits = [(self._now + limit_s, anyio.CancelScope())]  # attempts come one after the other
        return self._limits[0][1]
