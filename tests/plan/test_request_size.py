from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiockpt.model import GiB, KiB, MiB
from aiockpt.plan.request_size import GRANULE_BYTES, REQUESTS_PER_CONNECTION, request_bytes, request_bytes_around


@pytest.mark.parametrize(
    ("total", "connections", "expected"),
    [
        (0, 16, MiB),
        (10 * MiB, 16, MiB),
        (GiB, 16, 16 * MiB),
        (GiB, 8, 32 * MiB),
        (100 * GiB, 16, 32 * MiB),
        (130 * MiB, 16, 2 * MiB + 64 * KiB),
    ],
)
def test_request_bytes(total: int, connections: int, expected: int) -> None:
    assert request_bytes(total, connections, smallest=MiB, largest=32 * MiB) == expected


@given(total=st.integers(0, 2**45), connections=st.integers(1, 512))
def test_every_connection_gets_several_requests_where_the_bounds_allow(total: int, connections: int) -> None:
    size = request_bytes(total, connections, smallest=MiB, largest=32 * MiB)
    assert MiB <= size <= 32 * MiB
    assert size % GRANULE_BYTES == 0
    if MiB < size < 32 * MiB:
        requests = -(-total // size)
        assert 0.9 * REQUESTS_PER_CONNECTION * connections <= requests <= REQUESTS_PER_CONNECTION * connections


def test_around_the_preferred_size() -> None:
    sizes = [request_bytes_around(total, 4, 8 * MiB) for total in (MiB, 16 * 6 * MiB, 1000 * MiB)]
    assert sizes == [4 * MiB, 6 * MiB, 16 * MiB]


@pytest.mark.parametrize("connections", [4, 25, 64])
def test_where_they_should_be_few_it_does_not_matter_how_many_connections_there_are(connections: int) -> None:
    assert request_bytes_around(1000 * MiB, connections, 8 * MiB, few=True) == 32 * MiB
    assert request_bytes_around(96 * MiB, connections, 8 * MiB, few=True) == 6 * MiB
    assert request_bytes_around(96 * MiB, 2, 8 * MiB, few=True) == 12 * MiB
