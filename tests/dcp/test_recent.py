from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from aiockpt.dcp.recent import REMEMBERED, Recent


def test_what_was_noted_last_is_told() -> None:
    recent: Recent[str, int] = Recent()
    assert recent.get("a") is None
    recent.note("a", 1)
    recent.note("a", 2)
    assert (recent.get("a"), len(recent._rows)) == (2, 1)


def test_the_oldest_are_forgotten() -> None:
    recent: Recent[str, int] = Recent()
    for number in range(3 * REMEMBERED):
        recent.note(f"{number}", number)
        recent.note("again", number)
    assert len(recent._rows) == REMEMBERED
    assert recent.get("again") == 3 * REMEMBERED - 1
    assert recent.get("0") is None


@pytest.fixture
def impatient_threads() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("impatient_threads")
def test_threads_do_not_disturb_one_another() -> None:
    recent: Recent[str, int] = Recent()
    failures: list[Exception] = []

    def note(thread: int) -> None:
        try:
            for number in range(5000):
                recent.note(f"s3://bucket/{number * thread % 40}", number)
        except Exception as error:  # noqa: BLE001  # whatever it is
            failures.append(error)

    threads = [threading.Thread(target=note, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert 0 < len(recent._rows) <= REMEMBERED
