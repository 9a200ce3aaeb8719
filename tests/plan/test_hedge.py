from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiockpt.model import MiB
from aiockpt.plan.hedge import (
    FIRST_TOKENS,
    LEAST_AGE_S,
    MOST_TOKENS,
    QUIET_S,
    REMEMBERED,
    SIBLINGS_PER_SUSPECT,
    Flight,
    HedgeController,
    Judge,
    slow_part,
    slow_read,
)

SIZE = 8 * MiB


class Request:
    """A request as its transfer sees it."""

    def __init__(self, control: HedgeController, began_at: float, nbytes: int = SIZE) -> None:
        self.control = control
        self.moved = 0
        self.flight: Flight = control.begin(nbytes, lambda: self.moved, began_at)

    def answered(self, at: float) -> Request:
        self.control.on_answer(self.flight, at)
        return self

    def ended(self, at: float, *, complete: bool = True) -> None:
        self.control.on_end(self.flight, at, complete=complete)


def siblings(
    control: HedgeController, count: int, began_at: float, *, first_byte_s: float, took_s: float, nbytes: int = SIZE
) -> None:
    """Requests that begin together and end well."""
    for request in [Request(control, began_at, nbytes) for _ in range(count)]:
        request.answered(began_at + first_byte_s).ended(began_at + took_s)


def control(share: float = 0.02, judge: Judge = slow_read) -> HedgeController:
    return HedgeController(share, judge)


@pytest.mark.parametrize(
    ("first_byte_s", "took_s", "answered_s", "moved_share", "age_s", "hedged"),
    [
        # No first byte: five times the usual, and never before 0.2 s.
        (0.03, 0.13, None, 0.0, 0.19, False),
        (0.03, 0.13, None, 0.0, 0.21, True),
        (0.10, 0.20, None, 0.0, 0.49, False),
        (0.10, 0.20, None, 0.0, 0.51, True),
        # A first byte, then nothing: three times the usual duration.
        (0.03, 0.13, 0.03, 0.0, 0.38, False),
        (0.03, 0.13, 0.03, 0.0, 0.40, True),
        # It stalls in the middle, or near the end.
        (0.03, 0.13, 0.03, 0.5, 0.40, True),
        (0.03, 0.13, 0.03, 0.9, 0.40, False),  # at its rate it ends within 0.04 s, as a hedge would
        (0.03, 0.13, 0.03, 0.9, 0.90, True),  # but it does not
        # It crawls at a tenth of the usual rate; or it is half as fast as others, which is usual.
        (0.03, 0.13, 0.03, 0.3, 0.40, True),
        (0.03, 0.13, 0.03, 0.9, 0.25, False),
        # The same with slower siblings.
        (0.10, 2.00, 0.10, 0.2, 5.90, False),
        (0.10, 2.00, 0.10, 0.2, 6.10, True),
    ],
)
def test_what_is_slow_beside_its_siblings(
    first_byte_s: float, took_s: float, answered_s: float | None, moved_share: float, age_s: float, hedged: bool
) -> None:
    watched = control()
    slow = Request(watched, 10.0)
    siblings(watched, 8, 10.0, first_byte_s=first_byte_s, took_s=took_s)
    if answered_s is not None:
        slow.answered(10.0 + answered_s)
    slow.moved = int(moved_share * SIZE)
    assert watched.due(10.0 + age_s) == ([slow.flight] if hedged else [])


@pytest.mark.parametrize(
    ("took_s", "moved_share", "age_s", "hedged"),
    [
        # Nothing has been taken: three times the usual duration, and never before 0.2 s.
        (0.05, 0.0, 0.19, False),
        (0.05, 0.0, 0.21, True),
        (0.50, 0.0, 1.49, False),
        (0.50, 0.0, 1.51, True),
        # It crawls: what is left takes longer than two whole parts.
        (0.50, 0.3, 1.60, True),
        (0.50, 0.6, 1.60, True),
        (0.50, 0.7, 1.60, False),
        # All is there: the answer may come at any moment.
        (0.50, 1.0, 5.00, False),
    ],
)
def test_which_part_is_slow_beside_its_siblings(took_s: float, moved_share: float, age_s: float, hedged: bool) -> None:
    watched = control(judge=slow_part)
    slow = Request(watched, 10.0)
    siblings(watched, 8, 10.0, first_byte_s=took_s, took_s=took_s)
    slow.moved = int(moved_share * SIZE)
    assert watched.due(10.0 + age_s) == ([slow.flight] if hedged else [])


@pytest.mark.parametrize("missing", [0, 1000], ids=["no answer comes", "its end does not leave"])
def test_a_part_that_stands_still_is_hedged_after_as_long_as_two_take(missing: int) -> None:
    watched = control(judge=slow_part)
    slow = Request(watched, 0.0)
    siblings(watched, 8, 0.0, first_byte_s=0.5, took_s=0.5)
    slow.moved = SIZE - missing
    assert watched.due(0.9) == []  # when it was last seen to move
    assert watched.due(1.8) == []
    assert watched.due(1.95) == [slow.flight]


def test_a_read_that_stands_still_near_its_end_is_hedged() -> None:
    """At its rate it would be done at once, since it began."""
    watched = control()
    slow = Request(watched, 0.0).answered(0.03)
    siblings(watched, 8, 0.0, first_byte_s=0.03, took_s=0.1)
    slow.moved = SIZE - 1000
    assert watched.due(0.4) == []
    assert watched.due(0.59) == []  # a pause that a busy interpreter makes
    assert watched.due(0.61) == [slow.flight]


def test_a_read_that_has_all_its_bytes_is_not_hedged() -> None:
    """There is nothing to ask for: only the end of its framing is missing."""
    watched = control()
    slow = Request(watched, 0.0).answered(0.03)
    siblings(watched, 8, 0.0, first_byte_s=0.03, took_s=0.1)
    slow.moved = SIZE
    assert watched.due(1.0) == watched.due(10.0) == []


def test_parts_without_bytes_are_siblings_too() -> None:
    watched = control(judge=slow_part)
    siblings(watched, 8, 0.0, first_byte_s=0.03, took_s=0.1, nbytes=0)
    empty, large = Request(watched, 0.0, 0), Request(watched, 0.0)
    assert watched.due(0.2) == []
    assert watched.due(1.0) == [empty.flight]
    assert not large.flight.hedged


def test_each_is_hedged_once() -> None:
    watched = control(share=1.0)
    slow = Request(watched, 0.0)
    siblings(watched, 8, 0.0, first_byte_s=0.03, took_s=0.1)
    assert watched.due(1.0) == [slow.flight]
    assert watched.due(2.0) == []


def test_a_slow_service_is_not_hedged() -> None:
    """All at once are far slower than those that ended before."""
    watched = control(share=1.0)
    siblings(watched, 25, 0.0, first_byte_s=0.03, took_s=0.1)
    for number in range(25):
        Request(watched, 0.1 + number * 0.004)  # each in the place of one that has ended
    assert all(watched.due(0.2 + tenth / 10) == [] for tenth in range(100))


def test_a_service_that_turns_slow_is_not_hedged() -> None:
    """Half of what was under way has ended beside the others, and then nothing ends any more."""
    watched = control(share=1.0)
    under_way = [Request(watched, number * 0.004) for number in range(25)]
    for request in under_way[:12]:
        request.answered(request.flight.began_at + 0.03).ended(request.flight.began_at + 0.1)
    for number in range(12):
        Request(watched, 0.1 + number * 0.004)
    assert all(watched.due(0.2 + tenth / 10) == [] for tenth in range(100))


def test_one_in_five_may_be_slow() -> None:
    watched = control(share=1.0)
    slow = [Request(watched, 0.0) for _ in range(2)]
    siblings(watched, 2 * SIBLINGS_PER_SUSPECT - 1, 0.0, first_byte_s=0.03, took_s=0.1)
    assert watched.due(1.0) == []
    siblings(watched, 1, 0.0, first_byte_s=0.03, took_s=0.1)
    assert set(watched.due(1.0)) == {each.flight for each in slow}


def test_without_siblings_nothing_is_slow() -> None:
    watched = control(share=1.0)
    siblings(watched, 30, 0.0, first_byte_s=0.01, took_s=0.05)  # but before its time
    Request(watched, 1.0)
    assert watched.due(100.0) == []


def test_siblings_that_failed_prove_nothing() -> None:
    watched = control(share=1.0)
    Request(watched, 0.0)
    for _ in range(20):
        Request(watched, 0.0).ended(0.05, complete=False)
    assert watched.due(10.0) == []


def test_small_siblings_say_nothing_about_how_long_a_large_one_takes() -> None:
    watched = control(share=1.0)
    large = Request(watched, 0.0, 16 * MiB).answered(0.03)
    siblings(watched, 20, 0.0, first_byte_s=0.03, took_s=0.031, nbytes=700)
    large.moved = MiB
    assert watched.due(1.0) == []
    late = Request(watched, 0.0, 16 * MiB)  # but about when its first byte should come
    assert watched.due(1.0) == [late.flight]


def test_smaller_siblings_count_in_proportion() -> None:
    watched = control()
    large = Request(watched, 0.0, 16 * MiB).answered(0.03)
    siblings(watched, 8, 0.0, first_byte_s=0.03, took_s=0.1, nbytes=8 * MiB)
    assert watched.due(0.59) == []
    assert watched.due(0.61) == [large.flight]


def test_a_service_that_throttles_gets_no_hedges_until_a_while_after() -> None:
    watched = control()
    slow = Request(watched, 0.0)
    siblings(watched, 8, 0.0, first_byte_s=0.03, took_s=0.1)
    watched.on_throttle(0.5)
    watched.on_throttle(1.0)
    assert watched.due(1.0) == watched.due(QUIET_S + 0.99) == []
    assert watched.due(QUIET_S + 1.0) == [slow.flight]


def test_the_oldest_first_and_no_more_than_there_are_tokens() -> None:
    watched = control()
    slow = [Request(watched, 0.01 * number) for number in range(3)]
    siblings(watched, 20, 0.02, first_byte_s=0.03, took_s=0.1)
    assert watched.due(10.0) == [slow[0].flight]
    assert watched.due(10.1) == []


def test_a_load_of_forty_requests_can_hedge_one() -> None:
    watched = control()
    slow = Request(watched, 0.0)
    siblings(watched, 39, 0.0, first_byte_s=0.03, took_s=0.1)
    assert watched.due(1.0) == [slow.flight]


def test_switched_off() -> None:
    watched = control(share=0.0)
    Request(watched, 0.0)
    siblings(watched, 1000, 0.0, first_byte_s=0.03, took_s=0.1)
    assert watched.due(10.0) == []


def test_what_is_saved_is_bounded() -> None:
    watched = control()
    siblings(watched, 10_000, 0.0, first_byte_s=0.03, took_s=0.1)
    slow = [Request(watched, 1.0) for _ in range(8)]
    siblings(watched, REMEMBERED, 1.0, first_byte_s=0.03, took_s=0.1)
    due = watched.due(10.0)
    assert len(due) == MOST_TOKENS
    assert set(due) < {each.flight for each in slow}


@settings(deadline=None, max_examples=30)  # hundreds of steps each
@given(
    seed=st.integers(0, 2**32 - 1),
    share=st.sampled_from([0.0, 0.02, 0.1]),
    limit=st.integers(1, 30),
    slow_share=st.floats(0, 1),
)
def test_hedges_stay_within_their_share(seed: int, share: float, limit: int, slow_share: float) -> None:
    """Whatever becomes of the requests: never more than the cap, none twice, none that is young or has ended."""
    rng = random.Random(seed)
    watched = control(share)
    running: list[tuple[Request, float]] = []
    begun = hedges = 0
    hedged: set[Flight] = set()
    for step in range(300):
        now = step * 0.02
        for request, ends_at in [each for each in running if each[1] <= now]:
            request.ended(now, complete=rng.random() < 0.9)
            running.remove((request, ends_at))
        while len(running) < limit:
            begun += 1
            takes_s = rng.uniform(0.05, 0.2) * (20 if rng.random() < slow_share else 1)
            running.append((Request(watched, now).answered(now + 0.01), now + takes_s))
        under_way = {request.flight for request, _ in running}
        for flight in watched.due(now):
            hedges += 1
            assert flight in under_way - hedged
            assert now - flight.began_at >= LEAST_AGE_S
            hedged.add(flight)
        assert hedges <= (FIRST_TOKENS if share else 0) + share * begun + 1e-9


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1))
def test_requests_that_are_alike_are_never_hedged(seed: int) -> None:
    """However fast or slow the service is, and however slow it becomes: within a factor of two none is an outlier."""
    rng = random.Random(seed)
    watched = control(share=1.0)
    running: list[tuple[Request, float, float]] = []
    usual_s = rng.uniform(0.02, 2.0)
    now = 0.0
    for _ in range(200):
        now += usual_s / 5
        for entry in [each for each in running if each[2] <= now]:
            running.remove(entry)
            entry[0].ended(now)
        while len(running) < 10:
            ends_at = now + usual_s * rng.uniform(1, 2)
            running.append((Request(watched, now).answered(now + usual_s * 0.2), now, ends_at))
        for request, began_at, ends_at in running:
            request.moved = int(SIZE * (now - began_at) / (ends_at - began_at))
        assert watched.due(now) == []


@settings(deadline=None, max_examples=30)  # hundreds of steps each
@given(seed=st.integers(0, 2**32 - 1), unfairness=st.floats(1, 2), kernel_bytes=st.integers(0, 4 * MiB))
def test_parts_on_a_saturated_link_are_never_hedged(seed: int, unfairness: float, kernel_bytes: int) -> None:
    """However many share it: more of them as the engine grows its concurrency, fewer and fewer at the end of a save.

    Each has a share of the link that differs within a factor; what the kernel of the peer takes at once does not wait.
    """
    rng = random.Random(seed)
    watched = control(share=1.0, judge=slow_part)
    link_bytes_per_s = rng.uniform(10, 500) * MiB
    parts, limit, step_s = rng.randint(20, 120), rng.randint(4, 16), 0.1
    running: list[tuple[Request, float]] = []
    moved: dict[Request, float] = {}
    now = 0.0
    while parts or running:
        while parts and len(running) < limit:
            request = Request(watched, now, SIZE if parts > 1 else rng.randint(1, SIZE))
            running.append((request, rng.uniform(1, unfairness)))
            moved[request] = min(kernel_bytes, request.flight.nbytes)
            parts -= 1
        now += step_s
        weights = sum(weight for _, weight in running)
        for request, weight in list(running):
            moved[request] += link_bytes_per_s * step_s * weight / weights
            request.moved = min(int(moved[request]), request.flight.nbytes)
            if moved[request] >= request.flight.nbytes + kernel_bytes:  # which leave the peer's kernel, too
                request.ended(now)
                running.remove((request, weight))
                limit = min(32, limit + rng.randint(0, 1))
        assert watched.due(now) == []
