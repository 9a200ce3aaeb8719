from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiockpt.model import MiB
from aiockpt.plan.concurrency import HOLD_WINDOWS, SETTLE_S, WINDOW_S, ConcurrencyController, start_connections

MB = 1_000_000
TICK_S = 0.002


@dataclass
class Link:
    """A service behind a network, as a fluid model: what it gives to how many connections."""

    connection_rate: float  # bytes/s of one connection
    total_rate: float  # bytes/s of all together
    latency_s: float
    noise: float = 0.0  # relative, of the total rate in a tick


class Simulation:
    """A client that keeps the controller's limit of requests running, in steps of virtual time."""

    def __init__(
        self,
        link: Link,
        start: int = 16,
        *,
        request: int = 8 * MiB,
        busy: float = 0.0,
    ) -> None:
        self.link = link
        self.now = 0.0
        self.request = request
        self.controller = ConcurrencyController(256, start, lambda: busy * self.now)
        self.waiting: list[float] = []  # when the first byte of each request comes
        self.left: list[float] = []  # bytes left of each request that is being answered
        self.rng = random.Random(1)

    def run(self, seconds: float) -> float:
        """Bytes per second over the given time."""
        end = self.now + seconds
        moved = 0.0
        while self.now < end:
            moved += self._tick()
        return moved / seconds

    def _tick(self) -> float:
        self.now += TICK_S
        while len(self.waiting) + len(self.left) < self.controller.limit:
            self.waiting.append(self.now + self.link.latency_s)
        self._answer()
        return self._move()

    def _answer(self) -> None:
        ready = sum(at < self.now + TICK_S for at in self.waiting)
        self.waiting = [at for at in self.waiting if at >= self.now + TICK_S]
        self.left += [float(self.request)] * ready

    def _move(self) -> float:
        if not self.left:
            return 0.0
        total = self.link.total_rate * (1 + self.link.noise * self.rng.uniform(-1, 1))
        step = min(self.link.connection_rate, total / len(self.left)) * TICK_S
        moved = sum(min(step, left) for left in self.left)
        ended = sum(left <= step for left in self.left)
        self.left = [left - step for left in self.left if left > step]
        for _ in range(ended):
            self.controller.on_complete(self.request, self.now)
        return moved


REGION = Link(connection_rate=90 * MB, total_rate=1500 * MB, latency_s=0.02)
LOOPBACK = Link(connection_rate=3000 * MB, total_rate=3000 * MB, latency_s=0.0002)


@pytest.mark.parametrize("request_bytes", [4 * MiB, 8 * MiB, 16 * MiB])
def test_a_link_of_many_slow_connections_is_filled_within_half_a_second(request_bytes: int) -> None:
    simulation = Simulation(REGION, request=request_bytes)
    simulation.run(0.5)
    assert simulation.run(0.3) >= 0.9 * REGION.total_rate
    assert simulation.run(5) >= 0.9 * REGION.total_rate
    assert simulation.controller.limit <= 80


@pytest.mark.parametrize(("busy", "raised"), [(0.6, True), (0.75, False)])
def test_a_thread_that_is_the_bound_is_not_given_more(busy: float, raised: bool) -> None:
    simulation = Simulation(REGION, busy=busy)
    limits = set()
    for _ in range(50):
        simulation.run(0.1)
        limits.add(simulation.controller.limit)
    assert (limits != {16}) is raised


def test_a_wide_link_gets_all_the_connections_that_it_can_use() -> None:
    simulation = Simulation(Link(90 * MB, 10_000 * MB, 0.02))
    simulation.run(2)
    assert simulation.run(1) >= 0.9 * 10_000 * MB


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_limit_does_not_run_away_on_loopback(noise: float) -> None:
    link = Link(LOOPBACK.connection_rate, LOOPBACK.total_rate, LOOPBACK.latency_s, noise=noise)
    simulation = Simulation(link)
    assert simulation.run(60) >= 0.95 * link.total_rate
    assert simulation.controller.limit <= 24


def test_the_limit_follows_a_link_that_becomes_wider() -> None:
    link = Link(90 * MB, 500 * MB, 0.02)
    simulation = Simulation(link, start=4)
    simulation.run(3)
    link.total_rate = 1500 * MB
    simulation.run(3)
    assert simulation.run(1) >= 0.75 * 1500 * MB


# -- the rules one by one


def feed(controller: ConcurrencyController, rate: float, start: float, seconds: float) -> float:
    """Report requests that end at ``rate`` bytes/s, ten every 10 ms; returns the time at the end."""
    ticks = round(seconds / 0.01)
    for tick in range(1, ticks + 1):
        for _ in range(10):
            controller.on_complete(int(rate * 0.001), start + tick * 0.01)
    return start + ticks * 0.01


ROUND_S = SETTLE_S + WINDOW_S + 0.02  # the reports before and after, 10 ms each


def test_growth_is_doubled_until_it_stops_paying() -> None:
    controller = ConcurrencyController(256, 16)
    now = feed(controller, 100 * MB, 0.0, ROUND_S)
    assert controller.limit == 32
    now += 1
    controller.on_begin(now)
    now = feed(controller, 200 * MB, now, ROUND_S)
    assert controller.limit == 64
    now += 1
    controller.on_begin(now)
    feed(controller, 204 * MB, now, ROUND_S)
    assert controller.limit == 40  # back, with a quarter in reserve


def test_an_attempt_that_brings_nothing_is_taken_back() -> None:
    controller = ConcurrencyController(256, 16)
    now = feed(controller, 100 * MB, 0.0, 2 * ROUND_S)  # doubled, which brought nothing
    limits = []
    for _ in range(4 * HOLD_WINDOWS * 10):
        now = feed(controller, 100 * MB, now, 0.01)
        limits.append(controller.limit)
    assert set(limits) == {20, 23}
    assert limits.count(23) < len(limits) / 6


def test_a_pause_is_no_drop_of_throughput() -> None:
    controller = ConcurrencyController(256, 16)
    now = feed(controller, 100 * MB, 0.0, ROUND_S)
    controller.on_begin(now + 60)
    feed(controller, 200 * MB, now + 60, ROUND_S)
    assert controller.limit == 64


def test_a_thread_is_busy_until_larger_requests_have_freed_it() -> None:
    spent_s = 0.0
    controller = ConcurrencyController(256, 16, lambda: spent_s)
    now = 0.0
    seen = []
    for share in (0.79, 0.81, 0.61, 0.59, 0.61, 0.81):
        now += 1
        controller.on_begin(now)
        for _ in range(30):
            spent_s += share * 0.01
            now = feed(controller, 100 * MB, now, 0.01)
        seen.append(controller.busy)
    assert seen == [False, True, True, False, False, True]


def test_loads_that_follow_at_once_are_judged_together() -> None:
    controller = ConcurrencyController(256, 16)
    now = 0.0
    for _ in range(20):
        controller.on_begin(now)
        now = feed(controller, 100 * MB, now, 0.01)
    assert controller.limit == 32


def test_what_lies_between_loads_does_not_count() -> None:
    spent_s = 0.0
    controller = ConcurrencyController(256, 16, lambda: spent_s)
    for start in range(0, 1000, 100):
        controller.on_begin(start)
        for tick in range(30):
            spent_s += 0.01
            feed(controller, 100 * MB, start + tick * 0.01, 0.01)
        assert controller.busy


@given(
    events=st.lists(st.tuples(st.sampled_from(["begin", "complete"]), st.floats(0, 0.3)), max_size=200),
    start=st.integers(1, 20),
    more=st.integers(0, 20),
)
def test_the_limit_stays_within_its_bounds(events: list[tuple[str, float]], start: int, more: int) -> None:
    controller = ConcurrencyController(start + more, start)
    now = 0.0
    for event, pause in events:
        now += pause
        if event == "begin":
            controller.on_begin(now)
        else:
            controller.on_complete(10 * MB, now)
        assert start <= controller.limit <= start + more


@pytest.mark.parametrize(
    ("gbps", "largest", "connections"),
    [(10.0, 64, 25), (0.1, 64, 4), (100.0, 300, 250), (100.0, 64, 64), (1.0, 64, 4), (1.0, 2, 2)],
)
def test_start_connections(gbps: float, largest: int, connections: int) -> None:
    assert start_connections(gbps, largest) == connections
