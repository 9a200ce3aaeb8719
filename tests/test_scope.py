from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest

from aiockpt.errors import ClosedError
from aiockpt.scope import Scope, current_scope, session


class Member:
    def __init__(self) -> None:
        self.cancellations = 0

    def cancel(self) -> None:
        self.cancellations += 1


def test_members_are_cancelled_with_their_scope() -> None:
    scope, under_way, ended = Scope(), Member(), Member()
    scope.add(under_way)
    scope.add(ended)
    scope.discard(ended)
    scope.cancel()
    assert (under_way.cancellations, ended.cancellations) == (1, 0)
    assert [scope.cancelled, scope.is_idle] == [True, False]
    scope.discard(under_way)
    assert scope.is_idle


def test_a_cancelled_scope_lets_nobody_begin() -> None:
    scope = Scope()
    scope.check()
    scope.cancel()
    scope.cancel()
    with pytest.raises(ClosedError, match="cancelled by its caller"):
        scope.check()
    with pytest.raises(ClosedError):
        scope.add(Member())
    with pytest.raises(ClosedError), scope.session():
        pass


def test_members_may_leave_while_they_are_cancelled() -> None:
    scope = Scope()

    class Leaver(Member):
        def cancel(self) -> None:
            scope.discard(self)

    for _ in range(3):
        scope.add(Leaver())
    scope.cancel()


def test_sessions_are_counted() -> None:
    scope = Scope()
    idle = [scope.is_idle]
    with scope.session(), pytest.raises(LookupError), scope.session():
        idle.append(scope.is_idle)
        raise LookupError
    idle.append(scope.is_idle)
    with scope.session():
        scope.cancel()
        idle.append(scope.is_idle)
    assert [*idle, scope.is_idle] == [True, False, True, False, True]


def test_a_scope_is_its_threads() -> None:
    scope, inner = Scope(), Scope()
    seen: list[Scope | None] = []
    assert current_scope() is None
    with scope.entered():
        assert current_scope() is scope
        other = threading.Thread(target=lambda: seen.append(current_scope()))
        other.start()
        other.join()
        with inner.entered(), session():
            assert [inner.is_idle, scope.is_idle] == [False, True]
        assert current_scope() is scope
    assert current_scope() is None
    assert seen == [None]


def test_a_session_of_no_scope() -> None:
    with session():
        pass


def test_what_the_garbage_collector_closes_may_end_its_session_at_any_moment() -> None:
    """On a thread that is in the midst of the scope's own doing."""
    scope = Scope()
    with ExitStack() as stream:
        stream.enter_context(scope.session())

        class Collected(Member):
            def __hash__(self) -> int:  # asked for where the scope notes it: where the collector may come, too
                stream.close()
                return 0

        adding = threading.Thread(target=scope.add, args=[Collected()], daemon=True)
        adding.start()
        adding.join(10)
        assert not adding.is_alive()
