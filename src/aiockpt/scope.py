"""Scopes: what one save or load has under way, so that it can be cancelled from any thread.

A thread enters a scope; what it starts on the loop thread from then on belongs to the scope. Cancelling the scope
cancels all of that, wakes the thread if it waits for any of it, and refuses what it would start next: so code that
knows nothing of scopes (DCP, a planner, a file object) ends at its next touch of the storage, by an exception.

This room knows nothing of what it cancels.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Protocol

from aiockpt.errors import ClosedError


class Cancellable(Protocol):
    """Something under way."""

    def cancel(self) -> None:
        """Have it end soon; returns at once. Called from any thread, perhaps after it has ended."""


class Scope:
    """See the module. Thread-safe, but for one thread to enter at a time."""

    def __init__(self) -> None:
        self._members: set[Cancellable] = set()
        self._sessions = 0
        self._cancelled = False
        self._lock = threading.RLock()  # the garbage collector may close a stream of ours while we hold it

    @property
    def cancelled(self) -> bool:
        """Whether ``cancel`` was called."""
        return self._cancelled

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Have what this thread (this context) starts belong to this scope."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def cancel(self) -> None:
        """Cancel what is under way and refuse what would follow; idempotent, and does not wait."""
        with self._lock:
            self._cancelled = True
            members = list(self._members)
        for member in members:
            member.cancel()

    def check(self) -> None:
        """Refuse to go on once the scope was cancelled.

        Raises:
            ClosedError: it was.
        """
        if self._cancelled:
            raise ClosedError("cancelled by its caller")

    def add(self, member: Cancellable) -> None:
        """``member`` begins.

        Raises:
            ClosedError: the scope was cancelled.
        """
        with self._lock:
            self.check()
            self._members.add(member)

    def discard(self, member: Cancellable) -> None:
        """``member`` has ended."""
        with self._lock:
            self._members.discard(member)

    @contextmanager
    def session(self) -> Iterator[None]:
        """While inside, the caller's memory is read or written: see ``is_idle``."""
        with self._lock:
            self.check()
            self._sessions += 1
        try:
            yield
        finally:
            with self._lock:
                self._sessions -= 1

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way, nor memory in use; once true for a cancelled scope, it stays true."""
        return not (self._sessions or self._members)


_current: ContextVar[Scope | None] = ContextVar("scope", default=None)


def current_scope() -> Scope | None:
    """The scope that this thread has entered, if any."""
    return _current.get()


def session() -> AbstractContextManager[None]:
    """``Scope.session`` of the current scope, if there is one."""
    scope = current_scope()
    return nullcontext() if scope is None else scope.session()
