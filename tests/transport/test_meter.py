from __future__ import annotations

from aiockpt.transport.meter import Meter


def test_it_tells_how_far_the_present_try_has_come() -> None:
    sent = 5
    meter = Meter()
    assert meter.nbytes == 0
    meter.begin(lambda: sent)
    assert meter.nbytes == 5
    sent = 9
    assert meter.nbytes == 9


def test_what_it_read_last_stands_when_the_try_has_ended() -> None:
    sent = 5
    meter = Meter()
    meter.begin(lambda: sent)
    meter.end()
    sent = 9
    assert meter.nbytes == 5
    meter.begin(lambda: 1)
    assert meter.nbytes == 1
