"""The fault matrix as data: what is done to a service, and what `dcp.save` and `dcp.load` then have to do.

The documentation shows it (`docs/faults.md`), and `test_fault_matrix.py` runs it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiockpt.testing import Fault, FaultKind

#: What a cell ends in if nothing is to be seen of the fault: equal bytes.
UNHARMED = "equal bytes"

#: Not applicable: the fault has no meaning for this direction.
NONE = ""

Make = Callable[[random.Random], Fault]


@dataclass(frozen=True, slots=True)
class Row:
    """A fault, and its outcome: `UNHARMED`, `NONE`, or the name of the error.

    `make` draws what the fault leaves open (which requests, at which byte) from the generator of a seed. `operation`
    of a load is GetObject unless the fault names another.
    """

    name: str
    load: str
    save: str
    make: Make


def some(kind: FaultKind, operation: str = "", **kwargs: Any) -> Make:
    """Hits about a quarter of the requests, whichever they are."""
    return lambda rng: Fault(
        kind, operation, count=None, probability=0.25, seed=rng.randrange(2**31), **settled(kwargs, rng)
    )


def one(kind: FaultKind, operation: str = "", **kwargs: Any) -> Make:
    """Hits one of the first requests."""
    return lambda rng: Fault(kind, operation, skip=rng.randrange(4), **settled(kwargs, rng))


def first(kind: FaultKind, operation: str, **kwargs: Any) -> Make:
    return lambda rng: Fault(kind, operation, **settled(kwargs, rng))


def every(kind: FaultKind, operation: str = "", **kwargs: Any) -> Make:
    return lambda rng: Fault(kind, operation, count=None, **settled(kwargs, rng))


def settled(kwargs: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """With a byte somewhere in the body where `after_bytes` is left open."""
    return {name: rng.randrange(1, 200_000) if value is ANYWHERE else value for name, value in kwargs.items()}


def flip_in_metadata(rng: random.Random) -> Fault:
    return Fault(FaultKind.FLIP_BIT, key=".metadata", after_bytes=rng.randrange(500))


ANYWHERE = object()
ERROR = FaultKind.ERROR
INTERNAL: dict[str, Any] = {"status": 500, "code": "InternalError"}
DENIED: dict[str, Any] = {"status": 403, "code": "AccessDenied"}

ROWS = [
    Row("503 SlowDown, a quarter of the requests", UNHARMED, UNHARMED, some(ERROR)),
    Row("503 SlowDown, every request", "Throttled", "Throttled", every(ERROR)),
    Row("500 InternalError, a quarter of the requests", UNHARMED, UNHARMED, some(ERROR, **INTERNAL)),
    Row("500 InternalError, every request", "ServiceError", "ServiceError", every(ERROR, **INTERNAL)),
    Row("400 RequestTimeout, one request", UNHARMED, UNHARMED, one(ERROR, status=400, code="RequestTimeout")),
    Row("400 ExpiredToken, one request", UNHARMED, UNHARMED, one(ERROR, status=400, code="ExpiredToken")),
    Row("403 AccessDenied, every request", "AccessDenied", "AccessDenied", every(ERROR, **DENIED)),
    Row("404 NoSuchBucket, every request", "NotFound", "NotFound", every(ERROR, status=404, code="NoSuchBucket")),
    Row("404 NoSuchKey of a data object", "NotFound", NONE, every(ERROR, key=".distcp", status=404, code="NoSuchKey")),
    Row("connection reset before the answer, a quarter", UNHARMED, UNHARMED, some(FaultKind.RESET, after_bytes=None)),
    Row(
        "connection reset before the answer, every one",
        "ReadError",
        "ReadError",
        every(FaultKind.RESET, after_bytes=None),
    ),
    Row("connection reset in the body, a quarter", UNHARMED, UNHARMED, some(FaultKind.RESET, after_bytes=ANYWHERE)),
    Row(
        "connection closed before the answer, a quarter",
        UNHARMED,
        UNHARMED,
        some(FaultKind.END_EARLY, after_bytes=None),
    ),
    Row(
        "connection closed in the body, a quarter", UNHARMED, UNHARMED, some(FaultKind.END_EARLY, after_bytes=ANYWHERE)
    ),
    Row("connection closed after each answer", UNHARMED, UNHARMED, every(FaultKind.CLOSE)),
    Row("no answer, one request", UNHARMED, UNHARMED, one(FaultKind.STALL, after_bytes=None)),
    Row("no answer, every request", "TransportTimeout", "TransportTimeout", every(FaultKind.STALL, after_bytes=None)),
    Row("a body that stops, one request", UNHARMED, UNHARMED, one(FaultKind.STALL, after_bytes=ANYWHERE)),
    Row("a body that crawls, one request", UNHARMED, UNHARMED, one(FaultKind.CRAWL, bytes_per_s=8_000_000)),
    Row("an answer that comes late, one request", UNHARMED, UNHARMED, one(FaultKind.LATE, delay_s=0.3)),
    Row("a flipped bit in the metadata, once", UNHARMED, UNHARMED, flip_in_metadata),
    Row("a flipped bit in one body", UNHARMED, UNHARMED, one(FaultKind.FLIP_BIT, key=".distcp", after_bytes=ANYWHERE)),
    Row(
        "a flipped bit in every body",
        "ChecksumMismatch",
        "ServiceError",
        every(FaultKind.FLIP_BIT, key=".distcp", after_bytes=999),
    ),
    Row("Content-Length too large, one answer", UNHARMED, NONE, one(FaultKind.WRONG_LENGTH)),
    Row("Content-Length too small, one answer", UNHARMED, NONE, one(FaultKind.WRONG_LENGTH, length_error=-1)),
    Row("200 and the whole object for a range, once", UNHARMED, NONE, one(FaultKind.WHOLE_OBJECT)),
    Row("200 and the whole object for a range, every time", "RemoteProtocolError", NONE, every(FaultKind.WHOLE_OBJECT)),
    Row("200 and just the range, every time", UNHARMED, NONE, every(FaultKind.BARE_RANGE)),
    Row("the whole object's checksum with each range", UNHARMED, NONE, every(FaultKind.WHOLE_CHECKSUM)),
    Row("bodies in chunks refused", NONE, UNHARMED, every(FaultKind.REFUSE_CHUNKED)),
    Row(
        "an error inside a 200, once",
        NONE,
        UNHARMED,
        first(FaultKind.ERROR_IN_200, "CompleteMultipartUpload", code="InternalError"),
    ),
    Row(
        "an error inside a 200, every time",
        NONE,
        "ServiceError",
        every(FaultKind.ERROR_IN_200, "CompleteMultipartUpload", code="InternalError"),
    ),
    Row("answers lost, a quarter", UNHARMED, UNHARMED, some(FaultKind.LOST_REPLY)),
    Row("the answer to a Complete lost", NONE, UNHARMED, first(FaultKind.LOST_REPLY, "CompleteMultipartUpload")),
    Row("conditions ignored", UNHARMED, UNHARMED, every(FaultKind.IGNORE_CONDITIONS)),
    Row("weak ETags", UNHARMED, UNHARMED, every(FaultKind.WEAK_ETAG)),
    Row("ETags that say nothing of the bytes", NONE, UNHARMED, every(FaultKind.OPAQUE_ETAG)),
    Row("checksums ignored", UNHARMED, UNHARMED, every(FaultKind.IGNORE_CHECKSUMS)),
    Row("no ETags", UNHARMED, "RemoteProtocolError", every(FaultKind.EMPTY_ETAG)),
]
