"""Waits that Ctrl-C always ends.

CPython acts on a signal when the main thread runs bytecode, or when the signal interrupts its wait. One that comes just
before the wait begins (the thread may be held there, handing the interpreter lock over) is acted on when the wait ends,
if ever. So none here lasts for long at a time.
"""

from __future__ import annotations

import concurrent.futures
import math
import queue
import time
from typing import TypeVar

T = TypeVar("T")

#: Longest wait at a time: how late a Ctrl-C may be noticed.
PATIENCE_S = 0.5


def wait_for(future: concurrent.futures.Future[T], timeout_s: float | None = None) -> bool:
    """Whether a future is done, however, within ``timeout_s`` (None: without a limit)."""
    end = math.inf if timeout_s is None else time.monotonic() + timeout_s
    while not future.done() and (left_s := end - time.monotonic()) > 0:
        concurrent.futures.wait([future], min(left_s, PATIENCE_S))
    return future.done()


def outcome_of(future: concurrent.futures.Future[T]) -> T:
    """The future's result, or its error, once it is done."""
    wait_for(future)
    return future.result()


def next_of(items: queue.SimpleQueue[T]) -> T:
    """What comes next out of a queue."""
    while True:
        try:
            return items.get(timeout=PATIENCE_S)
        except queue.Empty:
            pass
