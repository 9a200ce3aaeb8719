from __future__ import annotations

import threading
from contextvars import ContextVar

import pytest

from aiockpt.awaitable.operation import Operation
from aiockpt.awaitable.turns import Turn
from aiockpt.bridge import get_bridge
from aiockpt.errors import ClosedError, WrongThreadError
from aiockpt.scope import Scope, current_scope
from awaitable.states import Gate

place: ContextVar[str] = ContextVar("place", default="nowhere")


async def test_a_thread_with_the_callers_context() -> None:
    place.set("here")
    operation = Operation(lambda: (place.get(), threading.current_thread(), current_scope()))
    where, thread, scope = await operation.settled()
    assert where == "here"
    assert thread is not threading.current_thread()
    assert scope is operation.scope


async def test_a_scope_of_the_callers() -> None:
    scope = Scope()
    assert await Operation(current_scope, scope=scope).settled() is scope


@pytest.mark.parametrize("kind", [LookupError, KeyboardInterrupt])
async def test_errors_come_as_they_are(kind: type[BaseException]) -> None:
    def fail() -> None:
        raise kind("here")

    with pytest.raises(kind, match="here"):
        await Operation(fail).settled()


async def test_whatever_a_cancelled_operation_fails_with() -> None:
    gate = Gate()

    def fail() -> None:
        gate.pass_through()
        raise LookupError("here")

    operation = Operation(fail)
    await gate.until_reached()
    operation.scope.cancel()
    gate.open.set()
    with pytest.raises(ClosedError, match="by its caller") as caught:
        await operation.settled()
    assert isinstance(caught.value.__cause__, LookupError)


async def test_as_many_as_there_are() -> None:
    """None waits for a thread: a hundred that all wait for the last one."""
    together = threading.Barrier(100)
    operations = [Operation(lambda: together.wait(20)) for _ in range(100)]
    assert sorted([await operation.settled() for operation in operations]) == list(range(100))


async def test_turns() -> None:
    gate, first = Gate(), Turn()
    second = Turn(first)
    order: list[str] = []
    later = Operation(lambda: order.append("later"), turn=second)

    def go_first() -> None:
        gate.pass_through()
        order.append("earlier")

    earlier = Operation(go_first, turn=first)
    await gate.until_reached()
    assert order == []
    gate.open.set()
    await earlier.settled()
    await later.settled()
    assert order == ["earlier", "later"]


def test_on_the_loop_thread_of_aiockpt() -> None:
    turn = Turn()

    async def misuse() -> None:
        Operation(lambda: None, turn=turn)

    with pytest.raises(WrongThreadError):
        get_bridge().run(misuse)
    turn.wait()  # nobody waits for an operation that there is not
