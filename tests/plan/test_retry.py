from __future__ import annotations

import asyncio
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiockpt.errors import (
    AccessDenied,
    ChecksumMismatch,
    ClosedError,
    ConfigError,
    ConnectError,
    LocalProtocolError,
    NotFound,
    ObjectChanged,
    PreconditionFailed,
    ReadError,
    RemoteProtocolError,
    ServiceError,
    ShortRead,
    Throttled,
    TLSError,
    TransportError,
    TransportTimeout,
    WriteError,
)
from aiockpt.plan.retry import (
    Backoff,
    Operation,
    RetryBudget,
    RetryPolicy,
    is_retryable,
    needs_new_credentials,
)

ALL = frozenset(Operation)
NONE: frozenset[Operation] = frozenset()
REPEATABLE = ALL - {Operation.DELETE_ONCE}
BODY = frozenset({Operation.PUT, Operation.UPLOAD_PART})


def damaged_at_rest() -> ChecksumMismatch:
    error = ChecksumMismatch("m")
    error.at_rest = True
    return error


def answer(status: int, code: str = "", kind: type[ServiceError] = ServiceError) -> ServiceError:
    return kind("m", status=status, code=code)


@pytest.mark.parametrize(
    ("error", "operations"),
    [
        (ConnectError("m"), ALL),
        (TLSError("m"), NONE),
        (ReadError("m"), REPEATABLE),
        (WriteError("m"), REPEATABLE),
        (TransportTimeout("m"), REPEATABLE),
        (TransportError("m"), REPEATABLE),
        (ShortRead("m"), NONE),  # the object is as short as the service says
        (ChecksumMismatch("m"), BODY | {Operation.GET}),
        (damaged_at_rest(), NONE),
        (ObjectChanged("m"), NONE),
        (RemoteProtocolError("m"), REPEATABLE),
        (LocalProtocolError("m"), NONE),
        (ConfigError("m"), NONE),
        (ClosedError("m"), NONE),
        (asyncio.CancelledError(), NONE),
        (KeyboardInterrupt(), NONE),
        (ValueError("m"), NONE),
        (ConnectionResetError("m"), NONE),  # the transport's edge gives it a type of ours
        (Throttled("m", status=503, code="SlowDown"), ALL),
        (Throttled("m"), ALL),
        (answer(429), ALL),
        *((answer(status), REPEATABLE) for status in (500, 502, 503, 504)),
        *((answer(status), NONE) for status in (301, 400, 401, 403, 404, 405, 409, 411, 412, 416, 501, 505)),
        (answer(200, "InternalError"), REPEATABLE),  # COMPLETE's and COPY's late errors
        (answer(400, "RequestTimeout"), ALL),
        (answer(403, "RequestTimeTooSkewed", AccessDenied), ALL),
        (answer(409, "ConditionalRequestConflict", PreconditionFailed), ALL - {Operation.COMPLETE}),
        (answer(409, "OperationAborted"), ALL),
        (answer(412, "PreconditionFailed", PreconditionFailed), NONE),
        (answer(400, "ExpiredToken"), ALL),
        (answer(400, "BadDigest"), BODY),
        (answer(400, "XAmzContentChecksumMismatch"), BODY),
        (answer(400, "IncompleteBody"), BODY),
        (answer(404, "NoSuchKey", NotFound), NONE),
        (answer(404, "NoSuchUpload", NotFound), NONE),
        (answer(403, "AccessDenied", AccessDenied), NONE),
        (answer(403, "SignatureDoesNotMatch", AccessDenied), NONE),
        (answer(403, "InvalidAccessKeyId", AccessDenied), NONE),
    ],
    ids=lambda value: "" if isinstance(value, frozenset) else repr(value),  # the order within sets is another each time
)
def test_is_retryable(error: BaseException, operations: frozenset[Operation]) -> None:
    assert {operation for operation in Operation if is_retryable(error, operation)} == operations


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (answer(400, "ExpiredToken"), True),
        (answer(403, "ExpiredToken", AccessDenied), True),
        (answer(403, "AccessDenied", AccessDenied), False),
        (ReadError("m"), False),
        (ValueError(), False),
    ],
)
def test_needs_new_credentials(error: BaseException, expected: bool) -> None:
    assert needs_new_credentials(error) is expected


# -- Backoff


@given(attempt=st.integers(1, 10_000), seed=st.integers(0, 100))
def test_delays_lie_between_zero_and_a_doubling_bound(attempt: int, seed: int) -> None:
    delay = Backoff(0.1, 20.0, random.Random(seed)).delay(attempt)
    assert 0 <= delay <= min(20.0, 0.1 * 2 ** min(attempt - 1, 20))


def test_delays_are_spread_over_all_of_their_range() -> None:
    backoff = Backoff(0.1, 20.0, random.Random(1))
    delays = [backoff.delay(3) for _ in range(1000)]
    assert min(delays) < 0.01
    assert max(delays) > 0.39


@pytest.mark.parametrize(("asked", "least"), [(0.0, 0.0), (7.0, 7.0), (20.0, 20.0), (86_400.0, 20.0)])
def test_what_the_service_asks_for_comes_on_top_and_is_capped(asked: float, least: float) -> None:
    delays = [Backoff(0.1, 20.0, random.Random(seed)).delay(1, asked) for seed in range(20)]
    assert all(least <= delay <= least + 0.1 for delay in delays)
    assert len(set(delays)) == 20  # who was told the same moment does not return at it together


def test_the_same_seed_gives_the_same_delays() -> None:
    first, second = (Backoff(0.1, 20.0, random.Random(5)) for _ in range(2))
    assert [first.delay(n) for n in range(1, 9)] == [second.delay(n) for n in range(1, 9)]


# -- RetryPolicy


def policy(max_attempts: int = 4, deadline_s: float = 10.0) -> RetryPolicy:
    return RetryPolicy(max_attempts, deadline_s, Backoff(0.5, 2.0, random.Random(2)))


def test_policy_gives_delays_until_the_attempts_are_used_up() -> None:
    tries = policy()
    delays = [tries.next_delay(ReadError("m"), Operation.GET, n, 0.0) for n in (1, 2, 3, 4)]
    assert delays[3] is None
    assert all(delay is not None and 0 <= delay <= 2.0 for delay in delays[:3])


def test_policy_does_not_repeat_what_is_final() -> None:
    assert policy().next_delay(answer(404, kind=NotFound), Operation.GET, 1, 0.0) is None


def test_policy_starts_no_try_after_the_deadline() -> None:
    assert policy().next_delay(ReadError("m"), Operation.GET, 1, 10.0) is None
    busy = Throttled("m", retry_after_s=2.0)
    assert policy().next_delay(busy, Operation.GET, 1, 8.0) is None
    delay = policy().next_delay(busy, Operation.GET, 1, 7.4)
    assert delay is not None
    assert 2.0 <= delay <= 2.5


@pytest.mark.parametrize(
    ("attempt_limit_s", "elapsed_s", "left"), [(4.0, 0.0, 4.0), (4.0, 7.0, 3.0), (math.inf, 7.0, 3.0), (4.0, 11.0, 0.0)]
)
def test_policy_bounds_a_try_by_its_own_limit_and_what_is_left(
    attempt_limit_s: float, elapsed_s: float, left: float
) -> None:
    bounded = RetryPolicy(4, 10.0, Backoff(0.5, 2.0, random.Random(2)), attempt_limit_s)
    assert bounded.time_left_s(elapsed_s) == left


def test_expired_credentials_are_replaced_at_once_but_not_in_a_tight_loop() -> None:
    expired = answer(400, "ExpiredToken")
    assert policy().next_delay(expired, Operation.GET, 1, 0.0) == 0.0
    second = policy().next_delay(expired, Operation.GET, 2, 0.0)
    assert second is not None
    assert second > 0


# -- RetryBudget


def test_budget_lets_a_service_that_is_down_have_a_hundred_retries() -> None:
    budget = RetryBudget()
    assert sum(budget.try_spend(ReadError("m")) for _ in range(1000)) == 100


def test_budget_charges_by_what_went_wrong() -> None:
    budget = RetryBudget(100)
    for error, left in (
        (ReadError("m"), 95),
        (TransportTimeout("m"), 85),
        (Throttled("m"), 84),
        (answer(500), 79),
    ):
        assert budget.try_spend(error)
        assert budget.tokens == left


def test_budget_gets_back_what_a_retry_that_helped_had_cost() -> None:
    budget = RetryBudget(100)
    budget.try_spend(TransportTimeout("m"))
    budget.on_success(TransportTimeout("m"))
    assert budget.tokens == 100


def test_budget_recovers_by_successes_and_never_beyond_its_capacity() -> None:
    budget = RetryBudget(10)
    assert budget.try_spend(ReadError("m"))
    assert not budget.try_spend(TransportTimeout("m"))
    for expected in (6, 7, 8, 9, 10, 10):
        budget.on_success()
        assert budget.tokens == expected


@given(
    st.lists(st.sampled_from(["spend", "timeout", "throttle", "ok", "helped"]), max_size=300),
    st.integers(0, 60),
)
def test_budget_stays_within_its_bounds(events: list[str], capacity: int) -> None:
    budget = RetryBudget(capacity)
    errors = {"spend": ReadError("m"), "timeout": TransportTimeout("m"), "throttle": Throttled("m")}
    for event in events:
        if event in errors:
            before = budget.tokens
            assert budget.try_spend(errors[event]) == (budget.tokens < before)
        else:
            budget.on_success(None if event == "ok" else ReadError("m"))
        assert 0 <= budget.tokens <= capacity
