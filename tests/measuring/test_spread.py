from __future__ import annotations

import pytest
import torch

from aiockpt.measuring.spread import Spread, hardware, significant


def test_spread() -> None:
    assert Spread.of([3, 1, 2]) == Spread(2, 1, 3)
    assert Spread.of([5]) == Spread(5, 5, 5)


@pytest.mark.parametrize(
    ("value", "words"), [(0, "0"), (1234.5, "1234"), (99.96, "100"), (1.2345, "1.23"), (0.0012345, "0.00123")]
)
def test_significant(value: float, words: str) -> None:
    assert significant(value) == words


def test_hardware() -> None:
    assert "cores of" in hardware()
    assert torch.__version__ in hardware()
