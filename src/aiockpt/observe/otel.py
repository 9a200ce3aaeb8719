"""OpenTelemetry: spans of saves and loads with their phases, and metrics of requests.

Nothing is imported unless the program itself has imported ``opentelemetry``, and the API does nothing until the program
has set its providers.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from aiockpt.observe.exchange import BULK_OPERATIONS, Exchange, clock, watch_everywhere
from aiockpt.observe.recorder import Recorder

#: The name of the instrumentation, as of the logger.
SCOPE = "aiockpt"


class Telemetry:
    """Makes spans and metrics with the providers that the program has set, also if it sets them later.

    A span is made when its save or load has ended, with the times that it had, as a child of the span that is current
    then on the thread that called. Metrics are named in ``docs/observability.md``.
    """

    def __init__(self) -> None:
        from opentelemetry import metrics, trace  # noqa: PLC0415  # optional

        self._tracing = trace
        self._tracer = trace.get_tracer(SCOPE)
        meter = metrics.get_meter(SCOPE)
        self._bytes = meter.create_counter("aiockpt.bytes", "By", "bytes of objects moved")
        self._requests = meter.create_counter("aiockpt.requests", "{request}", "requests that have ended")
        self._retries = meter.create_counter("aiockpt.retries", "{request}", "requests of a second or later try")
        self._request_duration = meter.create_histogram("aiockpt.request.duration", "s", "duration of requests")
        self._duration = meter.create_histogram("aiockpt.duration", "s", "duration of saves and loads")

    def began(self, exchange: Exchange) -> None:
        """A request wants a connection."""

    def ended(self, exchange: Exchange) -> None:
        """It is over."""
        about: dict[str, Any] = {"operation": exchange.operation, "status": exchange.status, "hedge": exchange.hedge}
        self._requests.add(1, about)
        self._request_duration.record(exchange.ended_s - exchange.asked_s, about)
        if exchange.attempt > 1:
            self._retries.add(1, {"operation": exchange.operation})
        if exchange.operation in BULK_OPERATIONS:
            for direction, nbytes in (("sent", exchange.sent_bytes), ("received", exchange.received_bytes)):
                if nbytes:
                    self._bytes.add(nbytes, {"direction": direction})

    def gauged(self, name: str, value: float) -> None:
        """Something measured: of interest in a timeline only."""

    def finished(self, recorder: Recorder) -> None:
        """A save or load is over."""
        report = recorder.report()
        about = {"kind": report.kind, "error": recorder.error}
        self._duration.record(report.elapsed_s, about)
        epoch_ns = time.time_ns() - _ns(clock())
        times = recorder.times
        start_s = min((phase.start_s for phase in times.values()), default=clock())
        end_s = max((phase.end_s for phase in times.values()), default=clock())
        facts = {f"aiockpt.{name}": value for name, value in _facts(recorder).items()}
        span = self._tracer.start_span(f"aiockpt.{report.kind}", start_time=epoch_ns + _ns(start_s), attributes=facts)
        if recorder.error:
            span.set_status(self._tracing.StatusCode.ERROR, recorder.error)
        inside = self._tracing.set_span_in_context(span)
        for phase, spent in times.items():
            child = self._tracer.start_span(
                f"aiockpt.{phase}",
                inside,
                start_time=epoch_ns + _ns(spent.start_s),
                attributes={"aiockpt.spent_s": spent.spent_s},
            )
            child.end(epoch_ns + _ns(spent.end_s))
        span.end(epoch_ns + _ns(end_s))


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _facts(recorder: Recorder) -> dict[str, Any]:
    """What a span says of a save or load: numbers and names only."""
    facts = recorder.report().to_dict()
    return {name: value for name, value in facts.items() if isinstance(value, str | int | float)}


_made: dict[str, Telemetry] = {}


def watch_if_used() -> None:
    """Have OpenTelemetry told of everything from now on, if the program has imported it; idempotent."""
    if _made or "opentelemetry.trace" not in sys.modules:
        return
    telemetry = Telemetry()
    if _made.setdefault(SCOPE, telemetry) is telemetry:  # one of several threads
        watch_everywhere(telemetry)
