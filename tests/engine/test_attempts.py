from __future__ import annotations

import asyncio
import gc
import math
import random
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from aiockpt.engine.attempts import Attempts
from aiockpt.engine.clock import LoopClock
from aiockpt.errors import NotFound, ReadError, ServiceError, Throttled, TransportTimeout
from aiockpt.model import ObjectId
from aiockpt.plan.retry import Backoff, Operation, RetryBudget, RetryPolicy
from engine.virtual_clock import VirtualClock

TARGET = ObjectId("bucket", "key")


class World:
    """Attempts by a clock of their own, and what else happens to them."""

    def __init__(
        self, *, max_attempts: int = 5, deadline_s: float = math.inf, attempt_limit_s: float = math.inf
    ) -> None:
        self.clock = VirtualClock()
        self.throttled: list[tuple[Operation, ObjectId]] = []
        self.budget = RetryBudget()
        policy = RetryPolicy(max_attempts, deadline_s, Backoff(1.0, 60.0, random.Random(1)), attempt_limit_s)
        self._attempts = Attempts(policy, self.budget, self.clock, lambda *what: self.throttled.append(what))

    @property
    def slept(self) -> list[float]:
        return self.clock.slept

    async def run(self, operation: Operation, attempt: Callable[[], Awaitable[Any]], **how: Any) -> Any:
        return await self._attempts(operation, TARGET, attempt, **how)


@pytest.fixture
def world() -> World:
    return World()


class Script:
    """An attempt that fails so often, then succeeds."""

    def __init__(self, *outcomes: Any, lands: int = 0) -> None:
        self.outcomes = list(outcomes)
        self.landed = 0
        self.lands = lands
        self.retries = 0

    async def __call__(self) -> Any:
        self.landed += self.lands
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


async def test_success_at_once(world: World) -> None:
    assert await world.run(Operation.GET, Script(7)) == 7
    assert world.slept == []


async def test_again_until_it_succeeds(world: World) -> None:
    script = Script(ReadError("1"), TransportTimeout("2"), 7)
    assert await world.run(Operation.GET, script, stats=script) == 7
    assert script.retries == len(world.slept) == 2
    assert world.budget.tokens == RetryBudget.CAPACITY - RetryBudget.RETRY_COST


async def test_what_is_final_is_not_tried_again(world: World) -> None:
    with pytest.raises(NotFound) as failure:
        await world.run(Operation.GET, Script(NotFound("gone", status=404), 7))
    assert failure.value.attempts == 1
    assert "gave up" not in str(failure.value)


async def test_the_last_error_tells_how_often_and_how_long(world: World) -> None:
    cause = OSError("wire")
    last = ReadError("last")
    last.__cause__ = cause
    with pytest.raises(ReadError, match="last") as failure:
        await world.run(Operation.GET, Script(*(ReadError(str(n)) for n in range(4)), last))
    assert failure.value is last
    assert failure.value.__cause__ is cause
    assert failure.value.attempts == 5
    assert failure.value.elapsed_s == world.clock.now() == sum(world.slept) > 0
    assert "(gave up after 5 attempts in" in str(failure.value)


async def test_progress_starts_the_count_again(world: World) -> None:
    script = Script(*(ReadError(str(n)) for n in range(20)), 7, lands=1)
    assert await world.run(Operation.GET, script, progress=lambda: script.landed) == 7
    assert len(world.slept) == 20
    assert max(world.slept) <= 1.0  # and the pauses


async def test_no_try_begins_that_would_be_late() -> None:
    world = World(max_attempts=1000, deadline_s=5.0)
    with pytest.raises(ReadError):
        await world.run(Operation.GET, Script(*(ReadError(str(n)) for n in range(1000))))
    assert world.clock.now() < 5.0


class Slow(Script):
    """An attempt of which each try takes so long; ``ended`` counts those that came to their end or were told of it."""

    def __init__(self, world: World, duration_s: float, *outcomes: Any, lands: int = 0) -> None:
        super().__init__(*outcomes, lands=lands)
        self.world = world
        self.duration_s = duration_s
        self.ended = 0

    async def __call__(self) -> Any:
        try:
            await self.world.clock.work(self.duration_s)
            return await super().__call__()
        finally:
            self.ended += 1


async def test_a_running_try_is_cut_when_the_operation_takes_too_long() -> None:
    world = World(deadline_s=5.0)
    slow = Slow(world, 100.0, 7)
    with pytest.raises(TransportTimeout, match=r"GET s3://bucket/key: cut after 5.0 s.*operation_timeout_s") as failure:
        await world.run(Operation.GET, slow)
    error = failure.value
    assert (error.bucket, error.key, error.attempts, error.elapsed_s) == ("bucket", "key", 1, 5.0)
    assert (world.clock.now(), slow.ended) == (5.0, 1)


async def test_what_is_left_of_the_operation_bounds_its_last_try() -> None:
    world = World(deadline_s=50.0)
    slow = Slow(world, 20.0, ReadError("1"), ReadError("2"), 7)
    with pytest.raises(TransportTimeout, match="operation_timeout_s") as failure:
        await world.run(Operation.UPLOAD_PART, slow)
    assert failure.value.attempts == slow.ended == 3
    assert world.clock.now() == failure.value.elapsed_s == 50.0


async def test_a_try_that_takes_too_long_is_cut_and_tried_again() -> None:
    world = World(attempt_limit_s=3.0)
    slow = Slow(world, 100.0)

    async def quick_at_last() -> int:
        if slow.ended < 2:
            await slow()
        return 7

    assert await world.run(Operation.PUT, quick_at_last) == 7
    assert (slow.ended, world.clock.now()) == (2, 6.0 + sum(world.slept))
    assert world.budget.tokens == RetryBudget.CAPACITY - RetryBudget.TIMEOUT_COST


async def test_tries_that_are_all_cut() -> None:
    world = World(attempt_limit_s=3.0)
    with pytest.raises(TransportTimeout, match=r"PUT s3://bucket/key: cut after 3.0 s.*attempt_timeout_s") as failure:
        await world.run(Operation.PUT, Slow(world, 100.0))
    assert failure.value.attempts == 5
    assert "gave up after 5 attempts in" in str(failure.value)


async def test_a_cut_on_the_loop_s_own_clock() -> None:
    policy = RetryPolicy(1, 0.01, Backoff(0, 0, random.Random(1)))
    attempts = Attempts(policy, RetryBudget(), LoopClock(), lambda *_: None)
    with pytest.raises(TransportTimeout):
        await attempts(Operation.GET, TARGET, anyio.sleep_forever)


async def test_the_caller_s_cancellation_is_no_timeout() -> None:
    attempts = Attempts(
        RetryPolicy(5, 60.0, Backoff(0, 0, random.Random(1)), 60.0), RetryBudget(), LoopClock(), lambda *_: None
    )
    begun = asyncio.Event()

    async def wait() -> None:
        begun.set()
        await anyio.sleep_forever()

    task = asyncio.ensure_future(attempts(Operation.GET, TARGET, wait))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_service_is_left_alone_for_as_long_as_it_asks(world: World) -> None:
    busy = Throttled("slow", status=503, code="SlowDown", retry_after_s=30.0)
    assert await world.run(Operation.GET, Script(busy, 7)) == 7
    (slept,) = world.slept
    assert 30.0 <= slept <= 31.0


async def test_throttling_is_told(world: World) -> None:
    slow = Throttled("slow", status=503, code="SlowDown")
    await world.run(Operation.UPLOAD_PART, Script(slow, slow, 7))
    assert world.throttled == [(Operation.UPLOAD_PART, TARGET)] * 2


async def test_after_throttling_it_steps_aside_and_after_other_failures_it_stays(world: World) -> None:
    aside: list[list[float]] = []

    async def step_aside(wait: Callable[[], Awaitable[None]]) -> None:
        before = len(world.slept)
        await wait()
        aside.append(world.slept[before:])

    script = Script(Throttled("slow", status=503), ReadError("broke"), Throttled("slow", status=503), 7)
    assert await world.run(Operation.GET, script, step_aside=step_aside) == 7
    assert aside == [world.slept[:1], world.slept[2:]]
    assert len(world.slept) == 3


async def test_expired_credentials_are_tried_again_at_once(world: World) -> None:
    expired = ServiceError("expired", status=400, code="ExpiredToken")
    assert await world.run(Operation.GET, Script(expired, 7)) == 7
    assert world.slept == [0.0]


async def test_a_spent_budget_ends_retries(world: World) -> None:
    while world.budget.try_spend(TransportTimeout("t")):
        pass
    while world.budget.try_spend(Throttled("t")):
        pass
    with pytest.raises(ReadError, match=r"gave up after 1 attempt in .*retry budget is spent") as failure:
        await world.run(Operation.GET, Script(ReadError("r"), 7))
    assert "budget" in failure.value.reason
    assert world.slept == []


async def test_foreign_exceptions_pass(world: World) -> None:
    with pytest.raises(LookupError):
        await world.run(Operation.GET, Script(LookupError(), 7))


async def test_what_a_failed_attempt_held_is_free_when_the_next_succeeds(world: World) -> None:
    class Payload:
        """Something large."""

    gone: list[weakref.ref[Payload]] = []

    async def attempt() -> None:
        payload = Payload()
        if not gone:
            gone.append(weakref.ref(payload))
            raise ReadError("broke")

    gc.disable()
    try:
        await world.run(Operation.PUT, attempt)
        assert gone[0]() is None
    finally:
        gc.enable()
