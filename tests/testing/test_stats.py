from __future__ import annotations

from aiockpt.testing.stats import Recorder, RequestRecord

RECORD = RequestRecord("GetObject", "GET", "b", "k", "", 0, 404, 5, 7, 1)


def test_counting() -> None:
    recorder = Recorder()
    for _ in range(2):
        recorder.connection_started()
        recorder.request_started("GetObject", disturbed=True)
    recorder.request_ended(RECORD, "NoSuchKey")
    recorder.connection_ended()
    stats = recorder.stats(uploads_open=3)
    assert (stats.requests, stats.errors, stats.faults, stats.uploads_open) == (
        {"GetObject": 2},
        {"NoSuchKey": 1},
        2,
        3,
    )
    assert (stats.body_bytes_in, stats.body_bytes_out, stats.requests_total) == (5, 7, 2)
    assert (stats.connections_opened, stats.connections_current, stats.connections_peak) == (2, 1, 2)
    assert (stats.requests_current, stats.requests_peak) == (1, 2)
    assert recorder.log == [RECORD]


def test_a_reset_keeps_what_is_going_on() -> None:
    recorder = Recorder()
    recorder.connection_started()
    recorder.request_started("GetObject", disturbed=False)
    recorder.reset()
    stats = recorder.stats(uploads_open=0)
    assert (stats.requests, stats.connections_opened, recorder.log) == ({}, 0, [])
    assert (stats.connections_current, stats.connections_peak) == (1, 1)
    assert (stats.requests_current, stats.requests_peak) == (1, 1)
