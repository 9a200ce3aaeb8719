"""Saves in the background: which they are, and how they leave the processors to the training beside them.

A save takes training time in two ways: its threads compete for processors with the trainer's, and its Python for the
interpreter lock. So it runs on threads of lower priority: a loop thread kept for such saves, and the one that called
DCP, if that is there for this save alone. Its parts are larger, since each costs the same Python (``plan.parts``).
"""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from aiockpt.blocking.store import Store
from aiockpt.bridge import get_bridge, give_way

#: What the threads of ``dcp.async_save`` are called (torch's ``_async_thread_executor``); each is there for one save.
_DCP_THREADS = "AsyncCheckpointExecutor"

#: What the processes of ``dcp.async_save`` run (torch's ``_async_process_executor``), each one save after the other.
_DCP_PROCESSES = "_AsyncCheckpointProcess._checkpointing_subprocess"

_marked: ContextVar[bool] = ContextVar("aiockpt_in_background", default=False)


@contextmanager
def background_thread() -> Iterator[None]:
    """Around a save whose thread was started for it, while its owner does something else."""
    token = _marked.set(True)
    try:
        yield
    finally:
        _marked.reset(token)


def in_background() -> bool:
    """Whether this thread is there for saves alone, beside what started it."""
    return _marked.get() or threading.current_thread().name.startswith(_DCP_THREADS) or _in_dcp_process()


def _in_dcp_process() -> bool:
    target = getattr(multiprocessing.current_process(), "_target", None)  # no public name for this question
    return getattr(target, "__qualname__", "") == _DCP_PROCESSES


def background_store(store: Store) -> Store:
    """The store for a save on this thread: in the background it works on threads that give way, as this one does."""
    if not in_background():
        return store
    store.config.check()
    get_bridge()  # the usual loop thread, should this be the first: it would inherit this thread's priority
    give_way(store.config.background_nice)
    return store.in_background()
