"""What is compared, and what came of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: Names that a verdict spells out; the rest is counted.
NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Check:
    """Two sets of named values that must be the same, bit by bit.

    Attributes:
        title: what was compared with what.
        compared: how many names there are.
        differing: the names of which the values differ, or that only one side has.
    """

    title: str
    compared: int
    differing: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether there was something to compare, and all of it was the same."""
        return self.compared > 0 and not self.differing

    @property
    def verdict(self) -> str:
        """One line: identical, or what differs."""
        if not self.compared:
            return "nothing to compare"
        if not self.differing:
            return "identical"
        more = len(self.differing) - NAMES_SHOWN
        names = ", ".join(self.differing[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
        return f"{len(self.differing)} of {self.compared} differ: {names}"


def check(title: str, expected: Mapping[str, str], actual: Mapping[str, str]) -> Check:
    """Compare two sets of named values."""
    names = [*expected, *(name for name in actual if name not in expected)]
    differing = tuple(name for name in names if expected.get(name) != actual.get(name))
    return Check(title, len(names), differing)
