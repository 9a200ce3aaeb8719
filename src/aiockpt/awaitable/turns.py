"""Turns: saves and loads that use one process group do so one after another.

Collectives of two threads on one group would answer each other's questions. Turns are given in the order in which the
operations are begun, which therefore has to be the same on all ranks, as with any collectives.
"""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import Self
from weakref import WeakKeyDictionary

import torch.distributed as dist


class Turn:
    """A place in the queue: entering it waits for those before, leaving it lets the next one in."""

    def __init__(self, before: Turn | None = None) -> None:
        self._before = before
        self._over = threading.Event()

    def __enter__(self) -> Self:
        if self._before is not None:
            self._before.wait()
            self._before = None
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.give_up()

    def wait(self) -> None:
        """Wait, blocking this thread, until it is over, and if it was given up before it was taken, those before it."""
        self._over.wait()
        if (before := self._before) is not None:
            before.wait()

    def give_up(self) -> None:
        """Let the next one in, also if this turn was never entered."""
        self._over.set()


class _Queues:
    """The last turn of each process group."""

    def __init__(self) -> None:
        self._last: WeakKeyDictionary[dist.ProcessGroup, Turn] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def next_turn(self, group: dist.ProcessGroup) -> Turn:
        with self._lock:
            turn = self._last[group] = Turn(self._last.get(group))
            return turn


_queues = _Queues()


def uses_collectives(*, no_dist: bool) -> bool:
    """Whether DCP will talk to other ranks."""
    return not no_dist and dist.is_available() and dist.is_initialized()


def next_turn(group: dist.ProcessGroup | None, *, no_dist: bool) -> Turn:
    """The next turn of ``group`` (None: the default one); one that waits for nobody if there are no collectives."""
    if not uses_collectives(no_dist=no_dist):
        return Turn()
    chosen = group if group is not None else dist.group.WORLD
    assert chosen is not None
    return _queues.next_turn(chosen)


def _forget_after_fork() -> None:
    """The threads whose turns these were are the parent's."""
    global _queues  # noqa: PLW0603  # one per process is the point
    _queues = _Queues()


os.register_at_fork(after_in_child=_forget_after_fork)
