from __future__ import annotations

import os
import sys
import threading

import pytest

from aiockpt.bridge import get_bridge, give_way

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="nice values are the process's elsewhere")


def own_nice() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


async def loops_nice() -> int:
    return own_nice()


def in_a_thread(*nices: int) -> list[int]:
    seen: list[int] = []

    def work() -> None:
        for nice in nices:
            give_way(nice)
            seen.append(own_nice())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return seen


def test_a_thread_gives_way_alone_and_for_good() -> None:
    before = own_nice()
    assert in_a_thread(0, before + 1, 0, before + 2) == [before, before + 1, before + 1, before + 2]
    assert own_nice() == before


def test_loop_threads_give_way() -> None:
    assert get_bridge("test-nice", 7).run(loops_nice) == max(7, own_nice())
    assert get_bridge().run(loops_nice) == own_nice()
