"""Counters of what the endpoint did, and the log of its requests. No I/O but the process's CPU clock."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

#: The log keeps this many requests, the latest ones: far more than a test counts.
LOG_LENGTH = 100_000


@dataclass(frozen=True, slots=True)
class Stats:
    """What happened since the last reset. Connections count from their first request on.

    Attributes:
        requests: how many of each operation, by S3's names; ``Unknown`` for what is none.
        errors: how many answers had each error code.
        faults: how many requests met a fault.
        body_bytes_in, body_bytes_out: bytes of request and answer bodies, as far as they were moved.
        connections_opened, connections_current, connections_peak: connections that carried a request.
        requests_current, requests_peak: requests between their head and the end of their answer.
        uploads_open: multipart uploads neither completed nor aborted.
        cpu_s: CPU seconds of the endpoint's process.
    """

    requests: Mapping[str, int]
    errors: Mapping[str, int]
    faults: int
    body_bytes_in: int
    body_bytes_out: int
    connections_opened: int
    connections_current: int
    connections_peak: int
    requests_current: int
    requests_peak: int
    uploads_open: int
    cpu_s: float

    @property
    def requests_total(self) -> int:
        """All requests."""
        return sum(self.requests.values())


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request, as the log has it.

    Attributes:
        operation: S3's name.
        method, bucket, key: what was asked; ``""`` where there was none.
        range: the Range header; ``""`` if there was none.
        part_number: of UploadPart; 0 for others.
        status: of the answer; 0 if none was sent.
        body_bytes_in, body_bytes_out: bytes of the bodies that were moved.
        connection: number of the connection, counting from 1.
    """

    operation: str
    method: str
    bucket: str
    key: str
    range: str
    part_number: int
    status: int
    body_bytes_in: int
    body_bytes_out: int
    connection: int


class Recorder:
    """Counts. Every ``x_started`` is followed by its ``x_ended``."""

    def __init__(self) -> None:
        self._connections = 0
        self._running = 0
        self.reset()

    def reset(self) -> None:
        """Forget everything but what is going on right now."""
        self._requests: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._faults = 0
        self._bytes_in = 0
        self._bytes_out = 0
        self._opened = 0
        self._connections_peak = self._connections
        self._running_peak = self._running
        self._cpu_s_before = time.process_time()
        self._log: deque[RequestRecord] = deque(maxlen=LOG_LENGTH)

    @property
    def log(self) -> list[RequestRecord]:
        """The finished requests, in the order in which they finished."""
        return list(self._log)

    def connection_started(self) -> None:
        """A connection carries its first request."""
        self._opened += 1
        self._connections += 1
        self._connections_peak = max(self._connections_peak, self._connections)

    def connection_ended(self) -> None:
        """Such a connection is gone."""
        self._connections -= 1

    def request_started(self, operation: str, *, disturbed: bool) -> None:
        """A request's head has been read."""
        self._requests[operation] += 1
        self._faults += disturbed
        self._running += 1
        self._running_peak = max(self._running_peak, self._running)

    def request_ended(self, record: RequestRecord, error_code: str) -> None:
        """A request is over, answered or not; ``error_code`` is ``""`` where none was answered."""
        self._running -= 1
        self._bytes_in += record.body_bytes_in
        self._bytes_out += record.body_bytes_out
        if error_code:
            self._errors[error_code] += 1
        self._log.append(record)

    def stats(self, uploads_open: int) -> Stats:
        """The counters now."""
        return Stats(
            requests=dict(self._requests),
            errors=dict(self._errors),
            faults=self._faults,
            body_bytes_in=self._bytes_in,
            body_bytes_out=self._bytes_out,
            connections_opened=self._opened,
            connections_current=self._connections,
            connections_peak=self._connections_peak,
            requests_current=self._running,
            requests_peak=self._running_peak,
            uploads_open=uploads_open,
            cpu_s=time.process_time() - self._cpu_s_before,
        )
