from __future__ import annotations

import pytest

from aiockpt.model import ObjectId
from aiockpt.observe.exchange import Exchange
from aiockpt.observe.recorder import Recorder
from aiockpt.observe.report import Phase

TARGET = ObjectId("bucket", "key")


class Clock:
    """Stands still until it is moved."""

    def __init__(self, time: float = 100.0) -> None:
        self.time = time

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cpu() -> Clock:
    return Clock(5.0)


@pytest.fixture
def recorder(clock: Clock, cpu: Clock) -> Recorder:
    return Recorder("load", "s3://bucket/ckpt", 3, now=clock, cpu=cpu)


def exchange(operation: str = "GetObject", **fields: float | bool) -> Exchange:
    made = Exchange(operation, TARGET)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_phases(recorder: Recorder, clock: Clock) -> None:
    clock.time = 101
    with recorder.phase(Phase.TRANSFER):
        for _ in range(3):
            clock.time += 1
            with recorder.phase(Phase.VERIFY):
                clock.time += 0.25
    clock.time += 10
    with recorder.phase(Phase.COMMIT):
        clock.time += 2
    report = recorder.report()
    assert report.phases == {"plan": 1, "transfer": 3.75, "verify": 0.75, "commit": 2}
    assert report.elapsed_s == 16.75
    assert (recorder.times[Phase.VERIFY].start_s, recorder.times[Phase.VERIFY].end_s) == (102, 104.75)


def test_the_time_of_a_phase_that_fails_counts(recorder: Recorder, clock: Clock) -> None:
    with pytest.raises(OSError, match="gone"), recorder.phase(Phase.TRANSFER):
        clock.time += 1
        raise OSError("gone")
    assert recorder.report().phases["transfer"] == 1


def test_a_second_transfer_does_not_plan_again(recorder: Recorder, clock: Clock) -> None:
    clock.time += 1
    for _ in range(2):
        with recorder.phase(Phase.TRANSFER):
            clock.time += 1
    assert recorder.report().phases == {"plan": 1, "transfer": 2}


def test_cpu_time_is_that_of_the_working_blocks(recorder: Recorder, cpu: Clock) -> None:
    with recorder.working():
        cpu.time += 1
    cpu.time += 10
    with recorder.working():
        cpu.time += 0.5
    assert recorder.report().cpu_s == 1.5


def test_requests_are_counted_while_it_works(recorder: Recorder) -> None:
    with recorder.working(), Exchange("HeadObject", TARGET):
        pass
    with Exchange("HeadObject", TARGET):
        pass
    assert recorder.report().operations == {"HeadObject": 1}


def test_what_requests_count_as(recorder: Recorder) -> None:
    recorder.ended(exchange(received_bytes=10, status=206))
    recorder.ended(exchange(received_bytes=4, attempt=2, status=200))
    recorder.ended(exchange(status=503, attempt=3, received_bytes=1))
    recorder.ended(exchange(hedge=True, received_bytes=5))
    recorder.ended(exchange("ListObjectsV2", received_bytes=1000))
    recorder.ended(exchange("UploadPart", sent_bytes=7))
    report = recorder.report()
    assert report.operations == {"GetObject": 4, "ListObjectsV2": 1, "UploadPart": 1}
    assert (report.received_bytes, report.sent_bytes) == (20, 7)
    assert (report.retries, report.hedges, report.throttles) == (2, 1, 1)


def test_the_first_byte_is_that_of_the_transfer(recorder: Recorder, clock: Clock) -> None:
    recorder.ended(exchange(asked_s=100, first_byte_s=100.5))  # metadata
    clock.time = 101
    with recorder.phase(Phase.TRANSFER):
        recorder.ended(exchange(asked_s=101, first_byte_s=101.75))
        recorder.ended(exchange(asked_s=101, first_byte_s=101.25))
        recorder.ended(exchange(asked_s=101, first_byte_s=0))
        recorder.ended(exchange("HeadObject", asked_s=101, first_byte_s=101.0))
    assert recorder.report().first_byte_s == 0.25


def test_without_an_answer_there_is_no_first_byte(recorder: Recorder) -> None:
    assert recorder.report().first_byte_s is None


def test_progress(recorder: Recorder, clock: Clock) -> None:
    done = 0
    before = recorder.progress()
    assert (before.done_bytes, before.total_bytes, before.rate, before.remaining_s) == (0, 0, 0, None)
    recorder.add(100)
    clock.time += 1
    with recorder.phase(Phase.TRANSFER):
        recorder.expect(1000, lambda: done)
        assert recorder.progress().total_bytes == 1100
        clock.time += 2
        done = 300
        now = recorder.progress()
    assert (now.done_bytes, now.total_bytes, now.elapsed_s, now.rate) == (400, 1100, 3, 200)
    assert now.remaining_s == 3.5
    clock.time += 100
    assert recorder.progress().rate == 200  # when all is over, it stays


def test_the_total_grows_with_what_comes_along(recorder: Recorder) -> None:
    recorder.expect(1000, lambda: 0)
    recorder.queue(800)
    assert recorder.progress().total_bytes == 1000
    recorder.queue(700)
    assert recorder.progress().total_bytes == 1500
    assert recorder.report().wanted_bytes == 1000


def test_never_is_more_done_than_there_is(recorder: Recorder) -> None:
    recorder.expect(10, lambda: 11)
    assert recorder.progress().total_bytes == 11


def test_what_nothing_was_compared_with(recorder: Recorder) -> None:
    recorder.unproven(3)
    recorder.unproven(4)
    assert recorder.report().unproven_bytes == 7


def test_slices(recorder: Recorder) -> None:
    recorder.sliced(3)
    recorder.sliced(1)
    assert (recorder.report().slices, recorder.report().stretches) == (2, 4)


def test_a_transfer_that_fails_is_told_once_with_its_time(
    recorder: Recorder, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, float]] = []
    monkeypatch.setattr(
        "aiockpt.observe.recorder.tell_finished", lambda it: told.append((it.error, it.times[Phase.TRANSFER].spent_s))
    )
    with pytest.raises(OSError, match="gone"), recorder.phase(Phase.TRANSFER), recorder.phase(Phase.VERIFY):
        clock.time += 2
        raise OSError("gone")
    assert told == [("OSError", 2)]
