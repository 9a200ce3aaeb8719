from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiockpt.plan.pace import Pace


@pytest.mark.parametrize(
    ("share", "elapsed_s", "spent_s", "pause_s"),
    [
        (0.5, 0.0, 1.0, 2.0),
        (0.5, 1.5, 1.0, 0.5),
        (0.5, 2.0, 1.0, 0.0),
        (0.5, 9.0, 1.0, 0.0),
        (2.0, 0.0, 1.0, 0.5),  # two processors
        (math.inf, 0.0, 5.0, 0.0),
    ],
)
def test_pauses(share: float, elapsed_s: float, spent_s: float, pause_s: float) -> None:
    assert Pace(share, 100.0, 7.0).pause_s(100.0 + elapsed_s, 7.0 + spent_s) == pytest.approx(pause_s)


@given(share=st.floats(0.01, 4), steps=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=20))
def test_whoever_pauses_keeps_to_the_share(share: float, steps: list[tuple[float, float]]) -> None:
    pace = Pace(share, 0.0, 0.0)
    now = spent_s = 0.0
    for took_s, cpu_s in steps:
        now, spent_s = now + took_s, spent_s + cpu_s
        now += pace.pause_s(now, spent_s)
        assert spent_s <= share * now * (1 + 1e-9) + 1e-9
