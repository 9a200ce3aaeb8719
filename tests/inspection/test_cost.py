from __future__ import annotations

import pytest

from aiockpt.inspection.cost import PRICE_PER_1000_GETS_USD, Link, load_s, requests_usd
from aiockpt.inspection.forecast import Forecast


@pytest.mark.parametrize(
    ("gets", "fetched_bytes", "seconds"),
    [
        (0, 0, 1.0),  # metadata: 0.5 s to the first byte, 0.5 s for its bytes
        (4, 4_000_000, 1.0 + 0.5 + 4.0),  # bound by the link
        (9, 1_000, 1.0 + 5 * 0.5),  # bound by latency: five rounds over two connections
    ],
)
def test_seconds(gets: int, fetched_bytes: int, seconds: float) -> None:
    link = Link(bits_per_s=8e6, latency_s=0.5, connections=2)
    one = Forecast(gets, 0, fetched_bytes, fetched_bytes, 1, exact=True)
    assert load_s(one, 500_000, link) == pytest.approx(seconds)


def test_dollars() -> None:
    assert requests_usd(1_000_000, PRICE_PER_1000_GETS_USD) == pytest.approx(0.4)
