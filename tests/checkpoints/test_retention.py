from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiockpt.checkpoints.retention import Retention
from aiockpt.errors import ConfigError


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "steps", "surplus"),
    [
        (None, None, [1, 2, 3], []),
        (1, None, [], []),
        (1, None, [5], []),
        (1, None, [3, 1, 2], [1, 2]),
        (2, None, [10, 20, 30, 30], [10]),
        (5, None, [1, 2], []),
        (1, 100, [50, 100, 150, 200, 250], [50, 150]),
        (2, 100, [0, 50, 100, 150], [50]),
        (1, 1, [1, 2, 3], []),
    ],
)
def test_surplus(keep_last: int | None, keep_every: int | None, steps: list[int], surplus: list[int]) -> None:
    assert Retention(keep_last, keep_every).surplus(steps) == surplus


def test_what_was_just_saved_stays() -> None:
    assert Retention(1).surplus([100, 200, 300], saved=100) == [200]
    assert Retention(2).surplus([100, 200, 300], saved=300) == [100]


@given(st.sets(st.integers(0, 1000)), st.integers(1, 20), st.one_of(st.none(), st.integers(1, 50)))
def test_what_stays(steps: set[int], keep_last: int, keep_every: int | None) -> None:
    retention = Retention(keep_last, keep_every)
    surplus = retention.surplus(steps)
    stays = steps.difference(surplus)
    assert set(sorted(steps)[-keep_last:]) <= stays
    assert set(surplus) <= steps
    assert all(keep_every is None or step % keep_every for step in surplus)
    assert len(stays) <= keep_last or keep_every is not None
    assert retention.surplus(stays) == []  # pruning twice is pruning once


@pytest.mark.parametrize(
    "wrong",
    [
        {"keep_last": 0},
        {"keep_last": -1},
        {"keep_last": 1.0},
        {"keep_last": True},
        {"keep_last": "3"},
        {"keep_last": 1, "keep_every": 0},
        {"keep_every": 5},
    ],
)
def test_settings_that_cannot_work(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="keep_"):
        Retention(**wrong)
