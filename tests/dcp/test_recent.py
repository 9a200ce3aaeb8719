from __future__ import annotations

import threading

from aiockpt.dcp.recent import REMEMBERED, Recent


def test_what_was_noted_last_is_told() -> None:
    recent: Recent[str, int] = Recent()
    assert recent.get("a") is None
    recent.note("a", 1)
    recent.note("a", 2)
    assert (recent.get("a"), len(recent)) == (2, 1)
    recent.clear()
    assert recent.get("a") is None


def test_the_oldest_are_forgotten() -> None:
    recent: Recent[int, int] = Recent()
    for number in range(3 * REMEMBERED):
        recent.note(number, number)
        recent.note(-1, number)
    assert len(recent) == REMEMBERED
    assert recent.get(-1) == 3 * REMEMBERED - 1
    assert recent.get(0) is None


def test_threads_do_not_disturb_one_another() -> None:
    recent: Recent[tuple[int, int], int] = Recent()

    def note(thread: int) -> None:
        for number in range(2000):
            recent.note((thread, number), number)

    threads = [threading.Thread(target=note, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 < len(recent) <= REMEMBERED
