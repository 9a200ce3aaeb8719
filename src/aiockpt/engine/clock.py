"""The clock of an engine: what time it is, waiting, and cutting what takes too long. Tests give another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import anyio


class Clock(Protocol):
    """Seconds from an unknown moment on, that never go back."""

    def now(self) -> float:
        """The time."""

    async def sleep(self, delay_s: float) -> None:
        """Wait."""

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Have something called once that is over."""

    def cut_after(self, limit_s: float) -> anyio.CancelScope:
        """A scope to enter, that cancels what runs in it after so long (``math.inf``: never)."""


class LoopClock:
    """The running event loop's clock. See ``Clock``."""

    def now(self) -> float:
        """See ``Clock``."""
        return asyncio.get_running_loop().time()

    async def sleep(self, delay_s: float) -> None:
        """See ``Clock``."""
        await anyio.sleep(delay_s)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        """See ``Clock``."""
        asyncio.get_running_loop().call_later(delay_s, callback)

    def cut_after(self, limit_s: float) -> anyio.CancelScope:
        """See ``Clock``."""
        return anyio.move_on_after(limit_s)
