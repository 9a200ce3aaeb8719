from __future__ import annotations

import gc
import random
import weakref
from typing import Any

import anyio
import pytest

from aiockpt.engine.attempts import Attempts
from aiockpt.errors import NotFound, ReadError, ServiceError, Throttled, TransportTimeout
from aiockpt.plan.retry import Backoff, Operation, RetryBudget, RetryPolicy


class World:
    """A clock that only sleeping moves, and what else happens to attempts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, max_attempts: int = 5, deadline_s: float = 1e9) -> None:
        self.now = 0.0
        self.slept: list[float] = []
        self.throttled: list[Operation] = []
        self.renewed = 0
        self.budget = RetryBudget()
        backoff = Backoff(1.0, 60.0, random.Random(1))
        policy = RetryPolicy(max_attempts, deadline_s, backoff)
        self.run = Attempts(policy, self.budget, lambda: self.now, self.throttled.append, self.renew)
        monkeypatch.setattr(anyio, "sleep", self.sleep)

    async def sleep(self, delay: float) -> None:
        self.slept.append(delay)
        self.now += delay

    async def renew(self) -> None:
        self.renewed += 1


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


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
    assert failure.value.elapsed_s == world.now == sum(world.slept) > 0
    assert "(gave up after 5 attempts in" in str(failure.value)


async def test_progress_starts_the_count_again(world: World) -> None:
    script = Script(*(ReadError(str(n)) for n in range(20)), 7, lands=1)
    assert await world.run(Operation.GET, script, progress=lambda: script.landed) == 7
    assert len(world.slept) == 20
    assert max(world.slept) <= 1.0  # and the pauses


async def test_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, max_attempts=1000, deadline_s=5.0)
    with pytest.raises(ReadError):
        await world.run(Operation.GET, Script(*(ReadError(str(n)) for n in range(1000))))
    assert world.now < 5.0


async def test_throttling_is_told(world: World) -> None:
    slow = Throttled("slow", status=503, code="SlowDown")
    await world.run(Operation.UPLOAD_PART, Script(slow, slow, 7))
    assert world.throttled == [Operation.UPLOAD_PART] * 2


async def test_expired_credentials_are_renewed_at_once(world: World) -> None:
    expired = ServiceError("expired", status=400, code="ExpiredToken")
    assert await world.run(Operation.GET, Script(expired, 7)) == 7
    assert (world.renewed, world.slept) == (1, [0.0])


async def test_a_spent_budget_ends_retries(world: World) -> None:
    while world.budget.try_spend(TransportTimeout("t")):
        pass
    while world.budget.try_spend(Throttled("t")):
        pass
    with pytest.raises(ReadError):
        await world.run(Operation.GET, Script(ReadError("r"), 7))
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
