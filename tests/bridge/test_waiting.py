"""A signal that another thread takes does not interrupt the main thread's wait, as one that comes just before it."""

from __future__ import annotations

import concurrent.futures
import queue
import threading

import pytest

from aiockpt.bridge import next_of, outcome_of, wait_for
from bridge.work import assert_quiet, script


@pytest.mark.parametrize("wait", ["outcome_of(Future())", "wait_for(Future())", "next_of(SimpleQueue())"])
def test_no_wait_outlasts_ctrl_c(wait: str) -> None:
    done = script(f"""
        import signal, threading
        from concurrent.futures import Future
        from queue import SimpleQueue
        from aiockpt.bridge import next_of, outcome_of, wait_for

        def interrupt():
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)

        signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Timer(0.2, interrupt).start()
        try:
            {wait}
        except KeyboardInterrupt:
            print("interrupted")
    """)
    assert_quiet(done, "interrupted")


def test_outcomes() -> None:
    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    threading.Timer(0.01, future.set_result, [3]).start()
    assert outcome_of(future) == 3
    failed: concurrent.futures.Future[int] = concurrent.futures.Future()
    failed.set_exception(TimeoutError("the work's own"))
    with pytest.raises(TimeoutError, match="own"):
        outcome_of(failed)


def test_limits() -> None:
    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    assert not wait_for(future, 0)
    assert not wait_for(future, 0.01)
    future.cancel()
    assert wait_for(future, 0)


def test_what_comes_next() -> None:
    items: queue.SimpleQueue[int] = queue.SimpleQueue()
    threading.Timer(0.01, items.put, [3]).start()
    assert next_of(items) == 3
