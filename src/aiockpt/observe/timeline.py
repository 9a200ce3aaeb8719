"""Exchanges, saves and loads as events of a timeline, in the JSON trace event format of Chrome and Perfetto. Pure.

One track a connection, on which slices never overlap: the request, and in it sending, waiting for the first byte and
the body. Requests that are not on our own connections, and saves and loads, are laid out on as many tracks as it takes.
Waiting for a connection is on none, so it is shown as asynchronous events.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from aiockpt.observe.exchange import Exchange
from aiockpt.observe.recorder import Recorder

Event = dict[str, Any]

#: Shorter waits for a connection are the event loop's own steps, and not shown: 0.1 ms is some four of them.
SHOWN_WAIT_S = 1e-4

#: First track of each group that is laid out here; connections count from 1.
CONTROL_TRACK = 1_000_000
WORK_TRACK = 2_000_000


class Timeline:
    """Turns what happens into events. Not thread-safe.

    Args:
        pid: of the process.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._named: set[int] = set()
        self._busy_until: dict[int, list[float]] = {CONTROL_TRACK: [], WORK_TRACK: []}
        self._in_flight = 0
        self._gauges: dict[str, float] = {}
        self._waits = 0

    def head(self) -> list[Event]:
        """What names the process."""
        return [self._event("M", 0, name="process_name", args={"name": f"aiockpt (pid {self._pid})"})]

    def began(self, exchange: Exchange) -> list[Event]:
        """A request wants a connection."""
        return self._counted(exchange, 1, exchange.asked_s)

    def ended(self, exchange: Exchange) -> list[Event]:
        """It is over."""
        counted = self._counted(exchange, -1, exchange.ended_s)
        return [*counted, *self._waited(exchange), *self._slices(exchange)]

    def gauged(self, name: str, value: float, at_s: float) -> list[Event]:
        """Something measured; nothing unless it has changed."""
        if self._gauges.get(name) == value:
            return []
        self._gauges[name] = value
        return [self._counter(name, value, at_s)]

    def finished(self, recorder: Recorder) -> list[Event]:
        """A save or load is over: what it was, and its phases."""
        times = recorder.times
        if not times:
            return []
        start = min(time.start_s for time in times.values())
        end = max(time.end_s for time in times.values())
        track = self._free_track(WORK_TRACK, start, end)
        args = {"rank": recorder.rank, "error": recorder.error}
        return [
            *self._name_track(track, f"saves and loads {track - WORK_TRACK + 1}"),
            self._slice(track, f"{recorder.kind} {recorder.uri}", start, end, args),
            *(
                self._slice(track, phase.value, time.start_s, time.end_s, {"spent_s": time.spent_s})
                for phase, time in sorted(times.items(), key=lambda item: (item[1].start_s, -item[1].end_s))
            ),
        ]

    def _counted(self, exchange: Exchange, change: int, at_s: float) -> list[Event]:
        """The requests in flight; without aiobotocore's, of which a cancelled one is not seen to end."""
        if not exchange.ours:
            return []
        self._in_flight += change
        return [self._counter("requests in flight", self._in_flight, at_s)]

    def _waited(self, exchange: Exchange) -> Iterator[Event]:
        if exchange.granted_s - exchange.asked_s < SHOWN_WAIT_S:
            return
        self._waits += 1
        for letter, at_s in (("b", exchange.asked_s), ("e", exchange.granted_s)):
            yield self._event(letter, at_s, name="waiting for a connection", cat="waiting", id=self._waits)

    def _slices(self, exchange: Exchange) -> Iterator[Event]:
        if not exchange.connection:
            track = self._free_track(CONTROL_TRACK, exchange.asked_s, exchange.ended_s)
            yield from self._name_track(track, f"control plane {track - CONTROL_TRACK + 1}")
            yield self._slice(track, _title(exchange), exchange.asked_s, exchange.ended_s, _facts(exchange))
            return
        track = exchange.connection
        if track not in self._named:
            yield from self._name_track(track, f"connection {track}")
            yield self._slice(track, "connect", exchange.granted_s, exchange.connected_s, {})
        yield self._slice(track, _title(exchange), exchange.connected_s, exchange.ended_s, _facts(exchange))
        for name, start, end in _steps(exchange):
            yield self._slice(track, name, start, end, {})

    def _name_track(self, track: int, name: str) -> Iterator[Event]:
        if track not in self._named:
            self._named.add(track)
            yield self._event("M", 0, name="thread_name", tid=track, args={"name": name})

    def _free_track(self, first: int, start: float, end: float) -> int:
        """The first track of a group on which nothing has reached beyond ``start``."""
        ends = self._busy_until[first]
        number = next((n for n, until in enumerate(ends) if until <= start), len(ends))
        ends[number : number + 1] = [end]
        return first + number

    def _slice(self, track: int, name: str, start: float, end: float, args: Event) -> Event:
        start_us = _us(start)
        return self._event("X", start, name=name, tid=track, dur=round(_us(end) - start_us, 3), args=args)

    def _counter(self, name: str, value: float, at_s: float) -> Event:
        return self._event("C", at_s, name=name, args={"value": value})

    def _event(self, letter: str, at_s: float, **fields: Any) -> Event:
        return {"ph": letter, "ts": _us(at_s), "pid": self._pid, "tid": 0, **fields}


def _us(seconds: float) -> float:
    """Microseconds, the format's unit, to the nanosecond."""
    return round(seconds * 1e6, 3)


def _title(exchange: Exchange) -> str:
    span = f" [{exchange.span.start}, {exchange.span.end})" if exchange.span is not None else ""
    part = f" part {exchange.part}" if exchange.part else ""
    return f"{exchange.operation} {exchange.target.key}{span}{part}"


def _facts(exchange: Exchange) -> Event:
    return {
        "bucket": exchange.target.bucket,
        "status": exchange.status,
        "attempt": exchange.attempt,
        "hedge": exchange.hedge,
        "error": exchange.error,
        "sent_bytes": exchange.sent_bytes,
        "received_bytes": exchange.received_bytes,
    }


def _steps(exchange: Exchange) -> Iterable[tuple[str, float, float]]:
    """Sending, waiting and receiving; a server may answer before all was sent."""
    first_byte = exchange.first_byte_s or exchange.ended_s
    sent = min(exchange.sent_s or first_byte, first_byte)
    yield "send", exchange.connected_s, sent
    if exchange.sent_s:
        yield "first byte", sent, first_byte
    if exchange.first_byte_s:
        yield "body", first_byte, exchange.ended_s
