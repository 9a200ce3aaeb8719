"""How fast work may go that should take only a share of a processor."""

from __future__ import annotations


class Pace:
    """Tells when to pause. It has no clock: callers give the times, in seconds from any moment on.

    Args:
        share: CPU seconds that may be spent in a second; above 0.
        now: the time.
        cpu_s: CPU seconds spent so far.
    """

    def __init__(self, share: float, now: float, cpu_s: float) -> None:
        self._share = share
        self._began = now
        self._cpu_s = cpu_s

    def pause_s(self, now: float, cpu_s: float) -> float:
        """How long to pause for what was spent since the beginning to be the share; 0 if it is less already."""
        return max(0.0, (cpu_s - self._cpu_s) / self._share - (now - self._began))
