from __future__ import annotations

import pytest

from aiockpt.commands.words import age, count, duration, size


@pytest.mark.parametrize(
    ("nbytes", "words"),
    [(0, "0 B"), (1, "1 B"), (999, "999 B"), (1000, "1.0 kB"), (1_234_567, "1.2 MB"), (10**12, "1.0 TB")],
)
def test_size(nbytes: int, words: str) -> None:
    assert size(nbytes) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-3, "0 s"),
        (0, "0 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7199, "119 min"),
        (7200, "2 h"),
        (172_799, "47 h"),
        (172_800, "2 d"),
        (86400 * 900, "900 d"),
    ],
)
def test_age(seconds: float, words: str) -> None:
    assert age(seconds) == words


@pytest.mark.parametrize(("seconds", "words"), [(0.0123, "12 ms"), (1, "1.0 s"), (119.96, "120.0 s"), (121, "2.0 min")])
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_count() -> None:
    assert [count(n, "object") for n in (0, 1, 2000)] == ["0 objects", "1 object", "2,000 objects"]
