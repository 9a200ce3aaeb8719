"""Attempts: do an operation until it succeeds, or until ``plan.retry`` says that it is final.

The decision is pure and lives in ``plan.retry``; this module only waits, cuts, counts and tells.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol, TypeVar

from aiockpt.engine.clock import Clock
from aiockpt.errors import AiockptError, Throttled, TransportTimeout
from aiockpt.model import ObjectId
from aiockpt.observe.exchange import attempt_number
from aiockpt.plan.retry import Operation, RetryBudget, RetryPolicy

logger = logging.getLogger("aiockpt")

T = TypeVar("T")

#: Waits, by calling what it is given, in a place where that holds up nobody; see ``Crew.pause``.
StepAside = Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]

_BUDGET_SPENT = "so much has failed that the engine's retry budget is spent"


class CountsRetries(Protocol):
    """Whatever keeps count of attempts beyond the first."""

    retries: int


async def stay(wait: Callable[[], Awaitable[None]]) -> None:
    """The place to wait in where none is better. See ``StepAside``."""
    await wait()


class Attempts:
    """Runs operations under one retry policy.

    Args:
        policy: decides, from the error, the attempts and the time, whether and when to try again.
        budget: shared by all operations, so that a service that is down is not besieged.
        clock: what ``policy`` is told the time by.
        on_throttle: called when the service asks to slow down, with the operation and what it was about.
    """

    def __init__(
        self, policy: RetryPolicy, budget: RetryBudget, clock: Clock, on_throttle: Callable[[Operation, ObjectId], None]
    ) -> None:
        self._policy = policy
        self._budget = budget
        self._clock = clock
        self._on_throttle = on_throttle

    async def __call__(
        self,
        operation: Operation,
        target: ObjectId,
        attempt: Callable[[], Awaitable[T]],
        *,
        progress: Callable[[], int] = lambda: 0,
        stats: CountsRetries | None = None,
        step_aside: StepAside = stay,
    ) -> T:
        """Run ``attempt()`` until it succeeds.

        Args:
            operation: what it is, for the policy.
            target: what it is about, for the error of a try that is cut.
            attempt: one try; resumes by itself where the last one stopped, if it can. It may be cancelled at any await.
            progress: bytes that have come so far: an attempt that moved any does not count towards the limit.
            stats: told of every further attempt.
            step_aside: does the waiting after a throttled attempt, so that what others do elsewhere can go on.

        Raises:
            TransportTimeout: the last try was cut, by its own limit or the operation's.
            the last error, with attempts and elapsed seconds noted on it.
        """
        started = self._clock.now()
        tries = fruitless = 0
        last_error: AiockptError | None = None
        while True:
            tries += 1
            attempt_number.set(tries)
            before = progress()
            try:
                answer = await self._attempt(operation, target, attempt, started)
            except AiockptError as error:
                fruitless = 1 if progress() > before else fruitless + 1
                elapsed_s = self._clock.now() - started
                delay_s, reason = self._next(error, operation, target, fruitless, elapsed_s)
                if delay_s is None:
                    error.after(tries, elapsed_s, reason)
                    raise
                logger.debug("%s: attempt %d failed, next in %.2f s: %s", operation.name, tries, delay_s, error)
                last_error = error.with_traceback(None)  # whose frames hold what was to be sent or filled
            else:
                self._budget.on_success(last_error)
                return answer
            if stats is not None:
                stats.retries += 1
            wait = partial(self._clock.sleep, delay_s)
            await (step_aside if isinstance(last_error, Throttled) else stay)(wait)

    async def _attempt(
        self, operation: Operation, target: ObjectId, attempt: Callable[[], Awaitable[T]], started: float
    ) -> T:
        """One try, cut when its time is over."""
        limit_s = self._policy.time_left_s(self._clock.now() - started)
        with self._clock.cut_after(limit_s) as scope:
            answer = await attempt()
        if scope.cancelled_caught:
            name = "attempt_timeout_s" if limit_s == self._policy.attempt_limit_s else "operation_timeout_s"
            message = f"{operation.name} {target.uri}: cut after {limit_s:.1f} s, not being done ({name})"
            raise TransportTimeout(message, bucket=target.bucket, key=target.key)
        return answer

    def _next(
        self, error: AiockptError, operation: Operation, target: ObjectId, tries: int, elapsed_s: float
    ) -> tuple[float | None, str]:
        """Seconds until the next try, or None and what there is to say about that."""
        if isinstance(error, Throttled):
            self._on_throttle(operation, target)
        delay_s = self._policy.next_delay(error, operation, tries, elapsed_s)
        if delay_s is not None and not self._budget.try_spend(error):
            return None, _BUDGET_SPENT
        return delay_s, ""
