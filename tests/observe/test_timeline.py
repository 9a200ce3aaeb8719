from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from aiockpt.model import ByteRange, ObjectId
from aiockpt.observe.exchange import Exchange
from aiockpt.observe.recorder import Recorder
from aiockpt.observe.report import Phase
from aiockpt.observe.timeline import CONTROL_TRACK, WORK_TRACK, Timeline

TARGET = ObjectId("bucket", "ckpt/x")


def exchange(times: str = "0 0 0 1 2 4", connection: int = 3, **fields: Any) -> Exchange:
    made = Exchange("GetObject", TARGET, ByteRange(10, 20), connection=connection)
    steps = ("asked_s", "granted_s", "connected_s", "sent_s", "first_byte_s", "ended_s")
    for name, value in zip(steps, times.split(), strict=True):
        setattr(made, name, float(value))
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def slices(events: Iterable[dict[str, Any]]) -> list[tuple[int, str, float, float]]:
    return [(e["tid"], e["name"], e["ts"], e["ts"] + e["dur"]) for e in events if e["ph"] == "X"]


def test_a_request_and_its_steps() -> None:
    line = Timeline(7)
    line.ended(exchange("0 0 0 0 0 0"))  # its connection is known from now on
    one = exchange("5 5 6 7 8 10", status=206, received_bytes=10, attempt=2, hedge=True)
    line.began(one)
    events = line.ended(one)
    assert slices(events) == [
        (3, "GetObject ckpt/x [10, 20)", 6e6, 10e6),
        (3, "send", 6e6, 7e6),
        (3, "first byte", 7e6, 8e6),
        (3, "body", 8e6, 10e6),
    ]
    (outer,) = (event for event in events if event["name"].startswith("GetObject"))
    assert outer["pid"] == 7
    assert outer["args"] == {
        "bucket": "bucket", "status": 206, "attempt": 2, "hedge": True, "error": "", "sent_bytes": 0,
        "received_bytes": 10,
    }  # fmt: skip
    json.dumps(events)


def test_a_new_connection_is_named_and_shows_its_making() -> None:
    events = Timeline(1).ended(exchange("0 1 3 4 5 6"))
    assert [event["args"]["name"] for event in events if event["ph"] == "M"] == ["connection 3"]
    assert slices(events)[0] == (3, "connect", 1e6, 3e6)


def test_waiting_for_a_connection_is_on_no_track() -> None:
    line = Timeline(1)
    assert [(e["ph"], e["ts"], e["id"]) for e in line.ended(exchange("1 3 3 4 5 6")) if e.get("cat") == "waiting"] == [
        ("b", 1e6, 1),
        ("e", 3e6, 1),
    ]
    assert not [e for e in line.ended(exchange("1 1 1 4 5 6")) if e.get("cat") == "waiting"]


def test_answered_before_all_was_sent() -> None:
    late = Timeline(1).ended(exchange("0 0 0 3 2 4"))  # noticed only afterwards
    assert slices(late)[2:] == [(3, "send", 0, 2e6), (3, "first byte", 2e6, 2e6), (3, "body", 2e6, 4e6)]
    never = Timeline(1).ended(exchange("0 0 0 0 2 4"))
    assert slices(never)[2:] == [(3, "send", 0, 2e6), (3, "body", 2e6, 4e6)]


def test_broken_before_an_answer() -> None:
    unanswered = Timeline(1).ended(exchange("0 0 0 1 0 4", error="ReadError"))
    assert slices(unanswered)[2:] == [(3, "send", 0, 1e6), (3, "first byte", 1e6, 4e6)]
    unsent = Timeline(1).ended(exchange("0 0 0 0 0 4", error="WriteError"))
    assert slices(unsent)[2:] == [(3, "send", 0, 4e6)]


def test_requests_in_flight_are_counted() -> None:
    line = Timeline(1)
    first, second = exchange("1 1 1 1 1 5"), exchange("2 2 2 2 2 4", connection=4)
    events = [*line.began(first), *line.began(second), *line.ended(second), *line.ended(first)]
    counts = [(e["ts"], e["args"]["value"]) for e in events if e["ph"] == "C"]
    assert counts == [(1e6, 1), (2e6, 2), (4e6, 1), (5e6, 0)]


def test_requests_that_may_not_be_seen_to_end_are_not_counted() -> None:
    line = Timeline(1)
    assert line.began(exchange(ours=False, connection=0)) == []
    assert [e["args"]["value"] for e in line.began(exchange()) if e["ph"] == "C"] == [1]


def test_gauges_tell_changes() -> None:
    line = Timeline(1)
    said = [line.gauged("limit", value, 1) for value in (5, 5, 6, 5)]
    assert [len(events) for events in said] == [1, 0, 1, 1]


def test_requests_without_our_connections_get_tracks_of_their_own() -> None:
    line = Timeline(1)
    spans = ["0 0 0 0 0 4", "1 0 0 0 0 3", "4 0 0 0 0 5", "4 0 0 0 0 6"]
    tracks = [slices(line.ended(exchange(span, connection=0)))[0][0] - CONTROL_TRACK for span in spans]
    assert tracks == [0, 1, 0, 1]


def test_a_save_and_its_phases() -> None:
    ticks = iter([0.0, 1.0, 2.0, 3.0, 5.0, 6.0, 8.0, 8.0])
    recorder = Recorder("save", "s3://bucket/ckpt", 2, now=lambda: next(ticks))
    with recorder.phase(Phase.TRANSFER), recorder.phase(Phase.STAGING):
        pass
    with recorder.phase(Phase.COMMIT):
        pass
    line = Timeline(1)
    events = line.finished(recorder)
    assert slices(events) == [
        (WORK_TRACK, "save s3://bucket/ckpt", 0, 8e6),
        (WORK_TRACK, "plan", 0, 1e6),
        (WORK_TRACK, "transfer", 1e6, 5e6),
        (WORK_TRACK, "staging", 2e6, 3e6),
        (WORK_TRACK, "commit", 6e6, 8e6),
    ]
    assert slices(line.finished(recorder))[0][0] == WORK_TRACK + 1  # two at once


def test_a_recorder_of_nothing() -> None:
    assert Timeline(1).finished(Recorder("load", "s3://bucket/ckpt")) == []


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 10)), max_size=30))
def test_slices_of_a_track_never_overlap(spans: list[tuple[float, float]]) -> None:
    line = Timeline(1)
    ended = sorted((start + length, start) for start, length in spans)
    events = [event for end, start in ended for event in line.ended(exchange(f"{start} 0 0 0 0 {end}", connection=0))]
    by_track: dict[int, list[tuple[float, float]]] = {}
    for track, _, start, end in slices(events):
        by_track.setdefault(track, []).append((start, end))
    for track_spans in by_track.values():
        for (_, end), (start, _) in pairwise(sorted(track_spans)):
            assert start >= end - 1e-3  # rounded to a nanosecond
