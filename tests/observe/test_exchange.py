from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from aiockpt.model import ObjectId
from aiockpt.observe import exchange as room
from aiockpt.observe.exchange import (
    Exchange,
    attempt_number,
    gauge,
    unwatch_everywhere,
    watch_everywhere,
    watching,
)
from aiockpt.observe.recorder import Recorder

TARGET = ObjectId("bucket", "key")


class Seen:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.begun: list[Exchange] = []
        self.over: list[Exchange] = []
        self.gauges: list[tuple[str, float]] = []
        self.recorders: list[Recorder] = []

    def began(self, exchange: Exchange) -> None:
        self.begun.append(exchange)

    def ended(self, exchange: Exchange) -> None:
        self.over.append(exchange)

    def gauged(self, name: str, value: float) -> None:
        self.gauges.append((name, value))

    def finished(self, recorder: Recorder) -> None:
        self.recorders.append(recorder)


@contextmanager
def everywhere(observer: Seen) -> Iterator[None]:
    watch_everywhere(observer)
    try:
        yield
    finally:
        unwatch_everywhere(observer)


def test_an_exchange_is_shown_to_who_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([1.0, 2.0])
    monkeypatch.setattr(room, "clock", lambda: next(ticks))
    seen = Seen()
    with watching(seen):
        with Exchange("GetObject", TARGET) as exchange:
            assert (seen.begun, seen.over) == ([exchange], [])
            exchange.status = 200
        assert seen.over == [exchange]
    assert (exchange.asked_s, exchange.ended_s, exchange.error) == (1.0, 2.0, "")


def test_after_the_block_nothing_is_shown() -> None:
    seen = Seen()
    with watching(seen):
        pass
    with Exchange("GetObject", TARGET):
        pass
    assert seen.begun == []


def test_nobody_is_told_twice() -> None:
    seen = Seen()
    with watching(seen), watching(seen), Exchange("GetObject", TARGET) as exchange:
        pass
    assert seen.begun == seen.over == [exchange]


def test_both_of_two_nested_watchers_see_it() -> None:
    outer, inner = Seen(), Seen()
    with watching(outer), watching(inner), Exchange("GetObject", TARGET) as exchange:
        pass
    assert outer.over == inner.over == [exchange]


def test_what_is_under_way_is_shown_to_its_end() -> None:
    seen = Seen()
    with everywhere(seen):
        exchange = Exchange("GetObject", TARGET)
        exchange.__enter__()
    exchange.__exit__(None, None, None)
    assert seen.over == [exchange]


def test_an_exchange_that_fails_says_by_what() -> None:
    seen = Seen()
    with watching(seen), pytest.raises(OSError, match="gone"), Exchange("GetObject", TARGET):
        raise OSError("gone")
    assert [exchange.error for exchange in seen.over] == ["OSError"]


def test_an_answer_is_no_failure_whatever_is_made_of_it() -> None:
    seen = Seen()
    with watching(seen), pytest.raises(ValueError, match="404"), Exchange("GetObject", TARGET) as exchange:
        exchange.status = 404
        raise ValueError("404")
    assert [exchange.error for exchange in seen.over] == [""]


async def test_each_of_two_concurrent_tasks_is_watched_by_its_own() -> None:
    async def work(key: str) -> Seen:
        seen = Seen()
        with watching(seen):
            await asyncio.gather(*(asyncio.ensure_future(request(key)) for _ in range(3)))
        return seen

    async def request(key: str) -> None:
        with Exchange("GetObject", ObjectId("bucket", key)):
            await asyncio.sleep(0)

    a, b = await asyncio.gather(work("a"), work("b"))
    assert {exchange.target.key for exchange in a.over} == {"a"}
    assert {exchange.target.key for exchange in b.over} == {"b"}
    assert len(a.over) == len(b.over) == 3


def test_of_everywhere_are_all_threads() -> None:
    seen = Seen()

    def request() -> None:
        with Exchange("GetObject", TARGET):
            pass

    with everywhere(seen):
        thread = threading.Thread(target=request)
        thread.start()
        thread.join()
    assert len(seen.over) == 1


def test_witnesses_hear_of_gauges_and_ends() -> None:
    seen = Seen()
    recorder = Recorder("save", "s3://bucket/ckpt")
    with everywhere(seen):
        gauge("limit", 3)
        report = recorder.finish()
    gauge("limit", 4)
    recorder.finish()
    assert (seen.gauges, seen.recorders) == ([("limit", 3)], [recorder])
    assert report.kind == "save"


def test_the_try_is_the_contexts() -> None:
    token = attempt_number.set(3)
    with Exchange("GetObject", TARGET) as exchange:
        pass
    attempt_number.reset(token)
    assert exchange.attempt == 3
    with Exchange("GetObject", TARGET) as exchange:
        pass
    assert exchange.attempt == 1
