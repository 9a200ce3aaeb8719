"""Attempts: do an operation until it succeeds, or until ``plan.retry`` says that it is final.

The decision is pure and lives in ``plan.retry``; this module only waits, counts and tells.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import anyio

from aiockpt.errors import AiockptError, Throttled
from aiockpt.plan.retry import Operation, RetryBudget, RetryPolicy, needs_new_credentials

logger = logging.getLogger("aiockpt")

T = TypeVar("T")


class CountsRetries(Protocol):
    """Whatever keeps count of attempts beyond the first."""

    retries: int


class Attempts:
    """Runs operations under one retry policy.

    Args:
        policy: decides, from the error, the attempts and the time, whether and when to try again.
        budget: shared by all operations, so that a service that is down is not besieged.
        now: the clock that ``policy`` is told, in seconds.
        on_throttle: called when the service asks to slow down, with the operation.
        renew_credentials: called when the service says that they have expired.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        budget: RetryBudget,
        now: Callable[[], float],
        on_throttle: Callable[[Operation], None],
        renew_credentials: Callable[[], Awaitable[None]],
    ) -> None:
        self._policy = policy
        self._budget = budget
        self._now = now
        self._on_throttle = on_throttle
        self._renew_credentials = renew_credentials

    async def __call__(
        self,
        operation: Operation,
        attempt: Callable[[], Awaitable[T]],
        *,
        progress: Callable[[], int] = lambda: 0,
        stats: CountsRetries | None = None,
    ) -> T:
        """Run ``attempt()`` until it succeeds.

        Args:
            operation: what it is, for the policy.
            attempt: one try; resumes by itself where the last one stopped, if it can.
            progress: bytes that have come so far: an attempt that moved any does not count towards the limit.
            stats: told of every further attempt.

        Raises:
            the last error, with attempts and elapsed seconds noted on it.
        """
        started = self._now()
        tries = fruitless = 0
        last_error: AiockptError | None = None
        while True:
            tries += 1
            before = progress()
            try:
                answer = await attempt()
            except AiockptError as error:
                fruitless = 1 if progress() > before else fruitless + 1
                delay = await self._delay(error, operation, fruitless, self._now() - started)
                if delay is None:
                    error.after(tries, self._now() - started)
                    raise
                logger.debug("%s: attempt %d failed, next in %.2f s: %s", operation.name, tries, delay, error)
                last_error = error.with_traceback(None)  # whose frames hold what was to be sent or filled
            else:
                self._budget.on_success(last_error)
                return answer
            if stats is not None:
                stats.retries += 1
            await anyio.sleep(delay)

    async def _delay(self, error: AiockptError, operation: Operation, tries: int, elapsed_s: float) -> float | None:
        """Seconds until the next try, or None; does what the error asks for besides."""
        if isinstance(error, Throttled):
            self._on_throttle(operation)
        delay = self._policy.next_delay(error, operation, tries, elapsed_s)
        if delay is None or not self._budget.try_spend(error):
            return None
        if needs_new_credentials(error):
            await self._renew_credentials()
        return delay
