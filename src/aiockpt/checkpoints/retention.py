"""Retention: which of a run's checkpoints are kept. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aiockpt.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Retention:
    """Keep the last so many steps, and of the older ones every so-manieth.

    Attributes:
        keep_last: how many of the latest complete steps stay; None: all do.
        keep_every: of the older ones, steps that are a multiple of this stay, too; None: none does.

    Raises:
        ConfigError: a number below 1, or ``keep_every`` where all stay anyway.
    """

    keep_last: int | None = None
    keep_every: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("keep_last", self.keep_last), ("keep_every", self.keep_every)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name} is a number of 1 or more, or None, got {value!r}")
        if self.keep_every is not None and self.keep_last is None:
            raise ConfigError(f"keep_every={self.keep_every} needs keep_last: without it every step is kept")

    def surplus(self, steps: Iterable[int], saved: int | None = None) -> list[int]:
        """Those of the complete ``steps`` that are not kept, in order; never the latest, nor the one just ``saved``."""
        if self.keep_last is None:
            return []
        older = sorted(set(steps))[: -self.keep_last]
        return [step for step in older if step != saved and (self.keep_every is None or step % self.keep_every)]
