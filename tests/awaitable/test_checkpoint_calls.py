from __future__ import annotations

import asyncio
from typing import Any

import pytest
from torch.distributed.checkpoint.api import CheckpointException, _wrap_exception

from aiockpt.awaitable import checkpoint_calls as room
from aiockpt.awaitable.checkpoint_calls import checkpoint_at, hand_over, in_order, own_errors, resolved, telling
from aiockpt.errors import ConfigError
from aiockpt.observe.report import Progress, Report


class Stateful:
    def __init__(self) -> None:
        self.given: Any = None

    def state_dict(self) -> dict[str, Any]:
        return {"n": 1}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.given = state_dict


def test_uris() -> None:
    assert checkpoint_at("s3://bucket/a/b") == "s3://bucket/a/b"
    for nothing in ("bucket/a", "s3://", b"s3://bucket", 5):
        with pytest.raises(ConfigError, match="s3://bucket/path"):
            checkpoint_at(nothing)  # type: ignore[arg-type]


def test_stateful_objects_say_and_are_told() -> None:
    state = {"b": Stateful(), "a": {"x": 1}}
    assert list(resolved(state)) == ["b", "a"]
    loaded = resolved(in_order(state))
    assert list(loaded) == ["a", "b"]
    assert loaded == {"a": {"x": 1}, "b": {"n": 1}}
    hand_over({"a": {"x": 2}, "b": {"n": 2}}, state)
    assert state["a"] == {"x": 2}
    assert isinstance(state["b"], Stateful)
    assert state["b"].given == {"n": 2}


def test_the_error_of_a_process_alone() -> None:
    cause = OSError("below")
    error = LookupError("here")
    error.__cause__ = cause
    gathered = CheckpointException("read", {0: _wrap_exception(error)})
    with pytest.raises(LookupError) as alone, own_errors(alone=True):
        raise gathered
    assert alone.value is error
    assert error.__cause__ is cause
    with pytest.raises(CheckpointException), own_errors(alone=False):
        raise gathered
    with pytest.raises(CheckpointException), own_errors(alone=True):
        raise CheckpointException("read", {n: _wrap_exception(error) for n in range(2)})


class Adapter:
    """Has moved as many bytes as it was asked for progress."""

    report: Report | None = None
    done = 0
    begun = True

    def progress(self) -> Progress | None:
        self.done += self.begun
        return Progress(self.done, 100, 1, 1.0, 1.0, None) if self.begun else None


async def test_progress_is_told_meanwhile_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PROGRESS_PERIOD_S", 0.001)
    seen: list[int] = []
    third = asyncio.Event()

    def look(progress: Progress) -> None:
        seen.append(progress.done_bytes)
        if len(seen) == 3:
            third.set()

    with telling(Adapter(), look):
        await third.wait()
        before = len(seen)
    assert seen == list(range(1, before + 2))
    await asyncio.sleep(0.01)
    assert len(seen) == before + 1


async def test_no_progress_is_told_of_what_has_not_begun_or_failed() -> None:
    adapter, seen = Adapter(), list[Progress]()
    with pytest.raises(LookupError), telling(adapter, seen.append):
        raise LookupError
    adapter.begun = False
    with telling(adapter, seen.append), telling(adapter, None):
        pass
    assert seen == []
