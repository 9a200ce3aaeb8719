"""Whether a failed operation is tried again, and when.

One job: decide from an error's type and S3 code. It never reads messages, never sleeps and has no clock;
elapsed times and the random generator are given to it. It knows nothing of what a retry does: the caller
repeats, resumes or refreshes credentials, and lets what is not an error of ours (cancellation above all) pass
untouched.
"""

from __future__ import annotations

import enum
import math
import random
from dataclasses import dataclass

from aiockpt.errors import (
    ChecksumMismatch,
    ConnectError,
    RemoteProtocolError,
    ServiceError,
    Throttled,
    TLSError,
    TransportError,
    TransportTimeout,
)


class Operation(enum.Enum):
    """What was being done; decides whether it may be done twice."""

    GET = enum.auto()
    PUT = enum.auto()
    UPLOAD_PART = enum.auto()
    CREATE = enum.auto()  # of a multipart upload
    COMPLETE = enum.auto()
    ABORT = enum.auto()
    HEAD = enum.auto()
    LIST = enum.auto()
    COPY = enum.auto()
    DELETE = enum.auto()
    DELETE_ONCE = enum.auto()  # of what somebody else may create anew as soon as it is gone


_SENDS_BODY = frozenset({Operation.PUT, Operation.UPLOAD_PART})

#: "List of error codes", Amazon S3 API Reference: those that ask for another try. InternalError and the like
#: also come inside a 200 answer (COMPLETE, COPY), where the status says nothing.
_TRANSIENT_CODES = frozenset(
    {
        "InternalError",
        "OperationAborted",
        "RequestTimeTooSkewed",
        "RequestTimeout",
        "RequestTimeoutException",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
    }
)
_TRANSIENT_STATUSES = frozenset({429, 500, 502, 503, 504})

#: The body that arrived is not the one that was sent.
_DAMAGED_BODY_CODES = frozenset({"BadDigest", "IncompleteBody", "XAmzContentChecksumMismatch"})

#: Another write to the key was under way. A PUT may be repeated; of COMPLETE, S3's documentation says that
#: the whole upload has to be done again.
_CONFLICT_CODE = "ConditionalRequestConflict"

_EXPIRED_CODES = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})


def needs_new_credentials(error: BaseException) -> bool:
    """Whether the credentials have expired, so that the operation may succeed with fresh ones."""
    return isinstance(error, ServiceError) and error.code in _EXPIRED_CODES


def is_retryable(error: BaseException, operation: Operation) -> bool:
    """Whether repeating ``operation`` may succeed and does no harm.

    A lost connection says nothing about what the service did. Most operations may be done twice; a repeated
    CREATE can leave an upload whose id nobody knows, which costs a sweep and not a checkpoint; a repeated
    COMPLETE is answered with NoSuchUpload after a success, and the caller has to look whether the object is
    there; DELETE_ONCE is not repeated if it may have been done. An answer that breaks the protocol counts as lost:
    proxies, and servers that are being restarted, send such. Damaged bytes are sent or fetched anew, unless they are
    stored like that. A changed or truncated object is not read again, and a certificate that is not trusted stays so.
    """
    return _may_help(error, operation) and not (operation is Operation.DELETE_ONCE and may_have_happened(error))


def _may_help(error: BaseException, operation: Operation) -> bool:
    match error:
        case TLSError():
            return False
        case TransportError() | RemoteProtocolError():
            return True
        case ChecksumMismatch(at_rest=True):
            return False
        case ChecksumMismatch():
            return operation in _SENDS_BODY or operation is Operation.GET
        case ServiceError():
            return _is_retryable_answer(error, operation)
        case _:
            return False


def _is_retryable_answer(error: ServiceError, operation: Operation) -> bool:
    """The code decides, and the status where it is silent: a proxy's answers have none."""
    if isinstance(error, Throttled) or error.code in _TRANSIENT_CODES or needs_new_credentials(error):
        return True
    if error.code in _DAMAGED_BODY_CODES:
        return operation in _SENDS_BODY
    if error.code == _CONFLICT_CODE:
        return operation is not Operation.COMPLETE
    return error.status in _TRANSIENT_STATUSES


def may_have_happened(error: BaseException) -> bool:
    """Whether the service may have done what it did not confirm; cancellations included.

    Refusals (4xx, 503) say that it has not, and so does a connection that never was. A 200 with an error inside does
    not say.
    """
    match error:
        case ConnectError() | Throttled():
            return False
        case ServiceError():
            return not 300 <= error.status < 500
        case _:
            return True


class Backoff:
    """Exponential backoff with full jitter: a delay is drawn evenly from zero to a bound that doubles.

    Full jitter, since many requests fail at the same moment when a service throttles; anything less would
    send them back together ("Exponential Backoff And Jitter", AWS Architecture Blog).

    Where the service says how long to stay away (Retry-After), that comes on top, so that all who were told the
    same moment do not return at it together.

    Args:
        base_s: the bound on the first delay.
        cap_s: the bound on any, and on what a service may ask for.
        rng: where delays are drawn from; seed it to repeat a run.
    """

    def __init__(self, base_s: float, cap_s: float, rng: random.Random) -> None:
        self._base_s = base_s
        self._cap_s = cap_s
        self._rng = rng

    def delay(self, attempt: int, retry_after_s: float = 0.0) -> float:
        """Seconds to wait after try ``attempt`` (from 1) failed."""
        doublings = min(attempt - 1, 64)  # 2**64 times any base is past any cap
        jitter_s = self._rng.uniform(0, min(self._cap_s, self._base_s * 2**doublings))
        return min(self._cap_s, retry_after_s) + jitter_s


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long an operation is tried.

    Attributes:
        max_attempts: tries in all, the first included.
        deadline_s: seconds from the start of the first try, after which none begins or goes on.
        backoff: how long to wait in between.
        attempt_limit_s: seconds after which a single try is cut, to begin afresh.
    """

    max_attempts: int
    deadline_s: float
    backoff: Backoff
    attempt_limit_s: float = math.inf

    def time_left_s(self, elapsed_s: float) -> float:
        """Seconds that a try may take that begins ``elapsed_s`` after the first began."""
        return max(0.0, min(self.attempt_limit_s, self.deadline_s - elapsed_s))

    def next_delay(self, error: BaseException, operation: Operation, attempts: int, elapsed_s: float) -> float | None:
        """Seconds to wait before the next try; None if there is to be none, and ``error`` is final.

        Args:
            error: how the last try failed.
            operation: what was tried.
            attempts: how many tries there have been, at least 1.
            elapsed_s: seconds since the first began.
        """
        if attempts >= self.max_attempts or not is_retryable(error, operation):
            return None
        if needs_new_credentials(error) and attempts == 1:
            return 0.0  # it is not the service that needs the time
        delay_s = self.backoff.delay(attempts, error.retry_after_s if isinstance(error, ServiceError) else 0.0)
        return delay_s if elapsed_s + delay_s < self.deadline_s else None


class RetryBudget:
    """Tokens that the operations of an engine share: retries cost some, successes bring some back.

    While the service is well, every operation has its retries. While it is down, the tokens run out and
    failures are final at once, instead of each of thousands of requests spending its own attempts on it. The
    idea and the numbers are those of the AWS SDKs' standard retry mode (capacity 500, 5 for a retry, 10 after
    a timeout), but for throttling, which costs 1: a service that says "slow down" is alive, and is answered
    by fewer connections.
    """

    CAPACITY = 500
    RETRY_COST = 5
    TIMEOUT_COST = 10
    THROTTLE_COST = 1

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._tokens = capacity

    @property
    def tokens(self) -> int:
        """What is left, from 0 to the capacity."""
        return self._tokens

    def try_spend(self, error: BaseException) -> bool:
        """Pay for a retry after ``error``; False, and nothing is paid, if there are too few tokens."""
        cost = _cost(error)
        if cost > self._tokens:
            return False
        self._tokens -= cost
        return True

    def on_success(self, last_error: BaseException | None = None) -> None:
        """Note a success: it brings back what the retry after ``last_error`` cost, a first try one token."""
        gain = 1 if last_error is None else _cost(last_error)
        self._tokens = min(self._capacity, self._tokens + gain)


def _cost(error: BaseException) -> int:
    if isinstance(error, Throttled):
        return RetryBudget.THROTTLE_COST
    return RetryBudget.TIMEOUT_COST if isinstance(error, TransportTimeout) else RetryBudget.RETRY_COST
