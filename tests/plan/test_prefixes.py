from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiockpt.model import ObjectId
from aiockpt.plan.prefixes import DOUBLING_S, ROUND_TRIP_S, PrefixLimits, prefix_of

TICK_S = 0.01


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limits(clock: Clock) -> PrefixLimits:
    return PrefixLimits(64, clock)


def begin(limits: PrefixLimits, prefix: str, count: int) -> None:
    for _ in range(count):
        limits.begin(prefix)


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        ("run/step-10/__0_0.distcp", "bucket/run/step-10"),
        ("run/step-10/ab/__0_0.distcp", "bucket/run/step-10/ab"),
        ("key", "bucket/"),
        ("", "bucket/"),
        ("a//b", "bucket/a/"),
    ],
)
def test_prefixes(key: str, prefix: str) -> None:
    assert prefix_of(ObjectId("bucket", key)) == prefix


def test_without_throttling_there_is_no_limit(limits: PrefixLimits) -> None:
    begin(limits, "a", 10_000)
    assert limits.admits("a")
    assert limits.limit("a") == math.inf


def test_what_runs_is_halved_at_once_and_only_there(limits: PrefixLimits) -> None:
    begin(limits, "a", 25)
    begin(limits, "b", 25)
    limits.on_throttle("a")
    assert limits.limit("a") == 12
    assert not limits.admits("a")
    assert limits.admits("b")
    for _ in range(14):
        limits.end("a")
    assert limits.admits("a")
    assert not limits.admits("a", waiting=1)


def test_one_round_trip_halves_once(limits: PrefixLimits, clock: Clock) -> None:
    begin(limits, "a", 64)
    for _ in range(20):
        limits.on_throttle("a")
    clock.now += 0.9 * ROUND_TRIP_S
    limits.on_throttle("a")
    assert limits.limit("a") == 36  # 32, and what it has grown by
    clock.now += 0.1 * ROUND_TRIP_S
    limits.on_throttle("a")
    assert limits.limit("a") == 18


def test_it_grows_until_it_is_none(limits: PrefixLimits, clock: Clock) -> None:
    begin(limits, "a", 16)
    limits.on_throttle("a")
    grown = []
    for _ in range(4):
        grown.append(limits.limit("a"))
        clock.now += DOUBLING_S
    assert grown == [8, 16, 32, math.inf]


def test_there_is_always_room_for_one(limits: PrefixLimits, clock: Clock) -> None:
    for _ in range(10):
        limits.on_throttle("a")
        clock.now += ROUND_TRIP_S
    assert limits.limit("a") == 1
    assert limits.admits("a")


def test_what_has_passed_is_forgotten(limits: PrefixLimits, clock: Clock) -> None:
    for number in range(10_000):
        prefix = f"step-{number}"
        begin(limits, prefix, 8)
        limits.on_throttle(prefix)
        for _ in range(8):
            limits.end(prefix)
        clock.now += 0.1
    assert len(limits._throttled) <= 4 * DOUBLING_S / 0.1 + 1  # from 4 to 64: four doublings
    assert not limits._running


@given(
    events=st.lists(
        st.tuples(st.sampled_from(["begin", "end", "throttle"]), st.sampled_from("abc"), st.floats(0, 3)), max_size=100
    )
)
def test_limits_are_sane_whatever_happens(events: list[tuple[str, str, float]]) -> None:
    clock = Clock()
    limits = PrefixLimits(64, clock)
    running = dict.fromkeys("abc", 0)
    throttled: set[str] = set()
    for event, prefix, pause in events:
        clock.now += pause
        if event == "begin":
            limits.begin(prefix)
            running[prefix] += 1
        elif event == "end" and running[prefix]:
            limits.end(prefix)
            running[prefix] -= 1
        elif event == "throttle":
            before = limits.limit(prefix)
            limits.on_throttle(prefix)
            throttled.add(prefix)
            assert limits.limit(prefix) <= max(1, before)
        for each in "abc":
            limit = limits.limit(each)
            assert limit >= 1
            assert limit == math.inf or (each in throttled and limit < 64)
            assert limits.admits(each) == (running[each] < limit)


class Service:
    """A service that serves so many requests at once under each prefix, and throttles others; each takes 50 ms."""

    def __init__(self, allowed: dict[str, int]) -> None:
        self.allowed = allowed
        self.clock = Clock()
        self.limits = PrefixLimits(64, self.clock)
        self.ends: dict[str, list[float]] = {prefix: [] for prefix in allowed}
        self.served = dict.fromkeys(allowed, 0)
        self.throttled = dict.fromkeys(allowed, 0)
        self.rng = random.Random(1)

    def run(self, seconds: float) -> None:
        """A client with endless work under every prefix, and 64 places for each."""
        self.served = dict.fromkeys(self.allowed, 0)
        self.throttled = dict.fromkeys(self.allowed, 0)
        for _ in range(round(seconds / TICK_S)):
            self.clock.now += TICK_S
            for prefix in self.allowed:
                self._tick(prefix)

    def _tick(self, prefix: str) -> None:
        ended = [at for at in self.ends[prefix] if at <= self.clock.now]
        self.ends[prefix] = [at for at in self.ends[prefix] if at > self.clock.now]
        self.served[prefix] += len(ended)
        for _ in ended:
            self.limits.end(prefix)
        while self.limits.admits(prefix) and self.limits._running[prefix] < 64:
            self.limits.begin(prefix)
            if len(self.ends[prefix]) < self.allowed[prefix]:
                self.ends[prefix].append(self.clock.now + 0.05 * self.rng.uniform(0.8, 1.2))
            else:
                self.throttled[prefix] += 1
                self.limits.on_throttle(prefix)
                self.limits.end(prefix)
                return  # it pauses before it tries again


def test_a_throttled_prefix_gets_most_of_what_the_service_gives_and_others_all() -> None:
    service = Service({"busy": 8, "idle": 64})
    service.run(2)
    service.run(10)
    assert service.served["busy"] >= 0.6 * 8 * 10 / 0.05
    assert service.served["idle"] >= 0.9 * 64 * 10 / 0.06
    assert service.throttled["busy"] <= 10 / ROUND_TRIP_S
    assert service.throttled["idle"] == 0


def test_a_prefix_that_the_service_splits_gets_all_again() -> None:
    service = Service({"busy": 4})
    service.run(5)
    service.allowed["busy"] = 64
    service.run(5)
    service.run(5)
    assert service.served["busy"] >= 0.9 * 64 * 5 / 0.06
    assert service.throttled["busy"] == 0
