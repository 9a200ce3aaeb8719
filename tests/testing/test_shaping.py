from __future__ import annotations

import pytest

from aiockpt.model import KiB, MiB
from aiockpt.testing.shaping import Lane, Line, Network, Shape


def test_a_line_without_a_rate_takes_no_time() -> None:
    assert Line().passed_at(10**9, None, now=5.0) == 5.0


def test_a_line_passes_bytes_one_run_after_the_other() -> None:
    line = Line()
    times = [line.passed_at(100, 1000.0, now=10.0) for _ in range(3)]
    assert times == pytest.approx([10.08, 10.18, 10.28])


def test_a_pause_gives_no_credit_beyond_the_slack() -> None:
    line = Line()
    line.passed_at(100, 1000.0, now=0.0)
    assert line.passed_at(100, 1000.0, now=50.0) == pytest.approx(50.08)


def test_connections_share_the_total_and_not_their_own_bandwidth() -> None:
    network = Network(Shape(connection_bytes_per_s=1000.0, total_bytes_per_s=1500.0))
    first, second = (Lane(network, network.shared_out) for _ in range(2))
    assert first.delay_s(300, now=1.0) == pytest.approx(0.28)
    assert second.delay_s(300, now=1.0) == pytest.approx(0.38)
    assert Lane(network, network.shared_in).delay_s(300, now=1.0) == pytest.approx(0.28)


def test_a_new_shape_counts_at_once() -> None:
    network = Network(Shape())
    lane = Lane(network, network.shared_in)
    assert lane.delay_s(MiB, now=0.0) == 0.0
    assert lane.run_bytes is None
    network.shape = Shape(connection_bytes_per_s=float(MiB))
    assert lane.delay_s(MiB, now=7.0) == pytest.approx(0.98)
    assert lane.run_bytes == 16 * KiB


@pytest.mark.parametrize(
    ("rate", "expected"), [(1.0, 16 * KiB), (10.0 * MiB, int(0.1 * MiB)), (1000.0 * MiB, 256 * KiB)]
)
def test_runs_last_about_ten_milliseconds(rate: float, expected: int) -> None:
    assert Shape(total_bytes_per_s=rate).run_bytes == expected
