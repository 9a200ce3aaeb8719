"""What every call of DCP from here has in common: URIs, stateful objects, errors, progress."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, Protocol

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.stateful import Stateful

from aiockpt.dcp.file_system import object_at
from aiockpt.errors import ConfigError
from aiockpt.observe.report import Progress, Report

#: What DCP saves and loads: names and values, nested as the caller likes.
StateDict = MutableMapping[str, Any]

OnProgress = Callable[[Progress], object]

#: Seconds between two reports of progress: as often as a person wants to look at a number.
PROGRESS_PERIOD_S = 0.2


class Adapter(Protocol):
    """A storage reader or writer of ours, as it tells of itself."""

    @property
    def report(self) -> Report | None:
        """What its last save or load did."""

    def progress(self) -> Progress | None:
        """How far the present one is."""


def checkpoint_at(uri: str | os.PathLike[str]) -> str:
    """The URI of a checkpoint, checked before anything is begun.

    Raises:
        ConfigError: it is no ``s3://bucket/…``.
    """
    try:
        return object_at(uri).uri
    except (ValueError, TypeError) as error:
        raise ConfigError(f"a checkpoint needs a URI s3://bucket/path: {error}") from error


def resolved(state_dict: StateDict) -> dict[str, Any]:
    """A shallow copy with what stateful objects say of themselves in their place."""
    return {name: value.state_dict() if isinstance(value, Stateful) else value for name, value in state_dict.items()}


def in_order(state_dict: StateDict) -> StateDict:
    """By name, as DCP loads: stateful objects may talk to other ranks, so the order is the same on all of them."""
    return {name: state_dict[name] for name in sorted(state_dict)}


def hand_over(loaded: dict[str, Any], state_dict: StateDict) -> None:
    """Put what was loaded into ``resolved(state_dict)`` where it belongs: stateful objects take it themselves."""
    for name, value in loaded.items():
        owner = state_dict[name]
        if isinstance(owner, Stateful):
            owner.load_state_dict(value)
        else:
            state_dict[name] = value


@contextmanager
def own_errors(*, alone: bool) -> Iterator[None]:
    """Have a process that works ``alone`` raise its failure itself; of several ranks DCP tells by rank."""
    try:
        yield
    except CheckpointException as error:
        failures = [failure for failure, _ in error.failures.values()]
        if not alone or len(failures) != 1:
            raise
        raise failures[0] from failures[0].__cause__


@contextmanager
def telling(adapter: Adapter, on_progress: OnProgress | None) -> Iterator[None]:
    """Call ``on_progress`` on this loop every now and then while in the block, and at its successful end."""
    if on_progress is None:
        yield
        return
    teller = _Teller(adapter, on_progress)
    try:
        yield
        teller.tell()
    finally:
        teller.stop()


class _Teller:
    """Tells of progress periodically, from a timer of the running loop, until it is stopped."""

    def __init__(self, adapter: Adapter, on_progress: OnProgress) -> None:
        self._adapter = adapter
        self._on_progress = on_progress
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(PROGRESS_PERIOD_S, self._tick)

    def tell(self) -> None:
        if (progress := self._adapter.progress()) is not None:
            self._on_progress(progress)

    def stop(self) -> None:
        self._timer.cancel()

    def _tick(self) -> None:
        self._timer = self._loop.call_later(PROGRESS_PERIOD_S, self._tick)
        self.tell()
