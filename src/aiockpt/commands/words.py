"""Sizes, ages and durations in words for people."""

from __future__ import annotations

from rich.filesize import decimal

_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400

#: Units of ages, the largest first, each used from twice its length on: "90 min" says more than "1 h".
_AGE_UNITS = ((_DAY_S, "d"), (_HOUR_S, "h"), (_MINUTE_S, "min"))


def size(nbytes: int) -> str:
    """Bytes in powers of ten, as GB/s and storage prices are."""
    return decimal(nbytes).replace("bytes", "B").replace("byte", "B")


def age(seconds: float) -> str:
    """How long ago: whole units."""
    for unit_s, name in _AGE_UNITS:
        if seconds >= 2 * unit_s:
            return f"{seconds // unit_s:.0f} {name}"
    return f"{max(0.0, seconds):.0f} s"


def duration(seconds: float) -> str:
    """How long something takes: two or three digits."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 2 * _MINUTE_S else f"{seconds / _MINUTE_S:.1f} min"


def count(number: int, noun: str) -> str:
    """A number of things, with their noun in the right form."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
