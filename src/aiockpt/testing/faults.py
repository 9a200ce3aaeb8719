"""Faults to be made on purpose: what they are, and which requests they hit. Deterministic; no I/O."""

from __future__ import annotations

import enum
import random
from collections.abc import Iterable
from dataclasses import dataclass


class FaultKind(enum.StrEnum):
    """What goes wrong. 'Body' is the request's for PutObject and UploadPart, else the answer's."""

    ERROR = "error"
    """Answer with ``status`` and ``code`` instead of performing the operation."""
    RESET = "reset"
    """Break the connection (RST) after ``after_bytes`` of the body; None: before the answer's head."""
    END_EARLY = "end-early"
    """Close in order (FIN) after ``after_bytes`` of the body; None: before the answer's head."""
    STALL = "stall"
    """Wait until faults are cleared, after ``after_bytes`` of the body; None: before the answer's head."""
    CRAWL = "crawl"
    """Move the body at ``bytes_per_s`` from ``after_bytes`` of it on, until faults are cleared."""
    LATE = "late"
    """Wait for ``delay_s`` before the answer's head, or until faults are cleared."""
    FLIP_BIT = "flip-bit"
    """Invert one bit of byte ``after_bytes`` of the body on its way; what is stored stays as it is."""
    WRONG_LENGTH = "wrong-length"
    """Announce ``length_error`` bytes more (or fewer) than are sent, then close the connection."""
    WHOLE_OBJECT = "whole-object"
    """Answer a ranged GET with status 200 and all of the object."""
    BARE_RANGE = "bare-range"
    """Answer a ranged GET with status 200 and no Content-Range, but just the range."""
    WHOLE_CHECKSUM = "whole-checksum"
    """Send the whole object's checksums with a ranged GET, too."""
    IGNORE_CHECKSUMS = "ignore-checksums"
    """Take a body whatever the checksums say that come with it, and keep none of them."""
    REFUSE_CHUNKED = "refuse-chunked"
    """Answer bodies in chunks, HTTP's or those of aws-chunked, with 411."""
    ERROR_IN_200 = "error-in-200"
    """Answer with status 200 and an error document with ``code`` instead of performing the operation."""
    LOST_REPLY = "lost-reply"
    """Perform the operation, then break the connection instead of answering."""
    IGNORE_CONDITIONS = "ignore-conditions"
    """Perform the operation as if If-Match and If-None-Match had not been sent."""
    EMPTY_ETAG = "empty-etag"
    """Leave out the ETag: the header, and the text of the element in a document."""
    WEAK_ETAG = "weak-etag"
    """Make the ETag of the answer's header a weak one (``W/"…"``), as proxies that compress do."""
    OPAQUE_ETAG = "opaque-etag"
    """Give a part an ETag that says nothing of its bytes, each time another one, as with SSE-KMS."""
    EXPIRE = "expire"
    """Refuse the access key that signs this request as expired, here and until faults are cleared."""
    CLOSE = "close"
    """Close the connection after the answer."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A rule: which requests are hit, and by what.

    Attributes:
        kind: what happens.
        operation: S3's name of the operation that is hit, such as ``GetObject``; ``""``: any.
        key: a part of the keys that are hit; ``""``: any, also requests without one.
        skip: how many matching requests go unharmed first.
        count: how many are hit after those; None: all.
        probability: of each of those to be really hit, drawn from a generator with ``seed``.
        seed: see ``probability``.
        after_bytes: see ``FaultKind``.
        status, code: of the answer of ``ERROR``; ``code`` also of ``ERROR_IN_200``.
        retry_after_s: seconds for a Retry-After header of ``ERROR``; None: no such header.
        length_error: see ``WRONG_LENGTH``.
        bytes_per_s: see ``CRAWL``.
        delay_s: see ``LATE``.
    """

    kind: FaultKind
    operation: str = ""
    key: str = ""
    skip: int = 0
    count: int | None = 1
    probability: float = 1.0
    seed: int = 0
    after_bytes: int | None = 0
    status: int = 503
    code: str = "SlowDown"
    retry_after_s: int | None = None
    length_error: int = 1
    bytes_per_s: float = 100_000.0
    delay_s: float = 1.0


class _Rule:
    """A fault and how often it has matched."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self._seen = 0
        self._random = random.Random(fault.seed)  # noqa: S311  # repeatable on purpose

    def hits(self, operation: str, key: str) -> bool:
        fault = self.fault
        if fault.operation not in {"", operation} or fault.key not in key:
            return False
        turn = self._seen - fault.skip
        self._seen += 1
        if turn < 0 or (fault.count is not None and turn >= fault.count):
            return False
        return self._random.random() < fault.probability


class Disturbance:
    """The faults that one request meets; of each kind the first that was added."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._by_kind: dict[FaultKind, Fault] = {}
        for fault in faults:
            self._by_kind.setdefault(fault.kind, fault)

    def __len__(self) -> int:
        return len(self._by_kind)

    def get(self, *kinds: FaultKind) -> Fault | None:
        """The fault of the first of ``kinds`` that there is one of."""
        return next((self._by_kind[kind] for kind in kinds if kind in self._by_kind), None)


class FaultBook:
    """All rules in force."""

    def __init__(self) -> None:
        self._rules: list[_Rule] = []

    def add(self, fault: Fault) -> None:
        """Add a rule; it counts requests from now on."""
        self._rules.append(_Rule(fault))

    def clear(self) -> None:
        """Drop all rules."""
        self._rules.clear()

    def match(self, operation: str, key: str) -> Disturbance:
        """Count a request, and say what happens to it."""
        return Disturbance([rule.fault for rule in self._rules if rule.hits(operation, key)])
