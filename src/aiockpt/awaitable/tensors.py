"""Tensors as they arrive: an async iterator over a load that pauses when its consumer is slower."""

from __future__ import annotations

import concurrent.futures
import os
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Self, cast

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._nested_dict import flatten_state_dict

from aiockpt.awaitable.checkpoint_calls import StateDict, checkpoint_at, own_errors, resolved
from aiockpt.awaitable.operation import Operation
from aiockpt.awaitable.outcome import settle
from aiockpt.blocking.store import Store
from aiockpt.dcp.arrivals import ArrivalsPlanner, ArrivalsReader, Deliver
from aiockpt.errors import ClosedError, ConfigError
from aiockpt.model import MiB
from aiockpt.observe.report import Progress, Report
from aiockpt.scope import Scope

#: Bytes that a load may be ahead of its consumer: 0.2 s at 10 Gbit/s, enough to ride out what a consumer does with
#: one tensor.
AHEAD_BYTES = 256 * MiB

Arrival = tuple[str, torch.Tensor]


class Arrivals:
    """What has arrived and was not taken yet: put by the load's thread, taken on the consumer's loop.

    Args:
        limit_bytes: ``put`` waits while more is there.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._ready: deque[Arrival] = deque()
        self._ready_bytes = 0
        self._asked: concurrent.futures.Future[Arrival | None] | None = None
        self._over = False
        self._cancelled = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Hand a tensor over; waits while the consumer has enough.

        Raises:
            ClosedError: nobody wants it any more.
        """
        with self._changed:
            while self._ready_bytes > self._limit_bytes and not self._cancelled:
                self._changed.wait()
            if self._cancelled:
                raise ClosedError("cancelled by its caller")
            self._ready.append((name, tensor))
            self._ready_bytes += tensor.nbytes
            self._answer()

    def cancel(self) -> None:
        """Nobody wants any more: let ``put`` fail."""
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()

    def end(self, error: BaseException | None) -> None:
        """No more will come, because of ``error`` if there is one."""
        with self._changed:
            self._over, self._error = True, error
            self._answer()

    def ask(self) -> concurrent.futures.Future[Arrival | None]:
        """The next one, or None at the end; one question at a time."""
        with self._changed:
            asked = self._asked = concurrent.futures.Future()
            self._answer()
            return asked

    def _answer(self) -> None:
        """Answer the question, if there is one and something to answer."""
        asked = self._asked
        if asked is None or not (self._ready or self._over):
            return
        self._asked = None
        if self._ready:
            name, tensor = self._ready.popleft()
            self._ready_bytes -= tensor.nbytes
            self._changed.notify_all()
            asked.set_result((name, tensor))
        elif self._error is not None:
            asked.set_exception(self._error)
        else:
            asked.set_result(None)


class TensorStream:
    """Iterates over ``(name, tensor)``; made by ``aiockpt.load_tensors``, which see. For one task.

    The load begins with the first step, and ends with the last, or with ``aclose``, with leaving an ``async with``
    block, or with a cancelled step: within a second, and no tensor is written to afterwards.
    """

    def __init__(
        self,
        store: Store,
        uri: str | os.PathLike[str],
        *,
        names: Collection[str] | None,
        state_dict: StateDict | None,
        device: torch.device | str,
        ahead_bytes: int,
        options: Mapping[str, Any],
    ) -> None:
        if ahead_bytes < 1:
            raise ConfigError(f"ahead_bytes must be at least 1, got {ahead_bytes}")
        half = max(1, ahead_bytes // 2)  # on their way, and waiting to be taken
        region = cast("str", store.region)
        self._reader = ArrivalsReader(region, checkpoint_at(uri), store.config, window_bytes=half, **options)
        self._arrivals = Arrivals(half)
        self._plan = partial(_planner, self._arrivals.put, names, state_dict, device)
        self._scope = Scope()
        self._scope.add(self._arrivals)
        self._operation: Operation[None] | None = None

    @property
    def report(self) -> Report | None:
        """What the load did; None until it is done."""
        return self._reader.report

    def progress(self) -> Progress | None:
        """How far it is, from any thread; None until it has begun."""
        return self._reader.progress()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Arrival:
        if self._scope.cancelled:
            raise StopAsyncIteration
        if self._operation is None:
            work = partial(_load, self._reader, self._plan, self._arrivals, self._scope)
            self._operation = Operation(work, scope=self._scope)
        arrived = await settle(self._arrivals.ask(), self._scope)
        if arrived is None:
            raise StopAsyncIteration
        return arrived

    async def aclose(self) -> None:
        """End the load; idempotent."""
        self._scope.cancel()
        if self._operation is not None:
            await self._operation.settled()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if hasattr(self, "_scope"):
            self._scope.cancel()  # a loop that was left early, and forgot to close


def _load(
    reader: ArrivalsReader, make_planner: Callable[[], ArrivalsPlanner], arrivals: Arrivals, scope: Scope
) -> None:
    """On the load's thread; its failure is one more arrival."""
    error: BaseException | None = None
    try:
        with own_errors(alone=True):
            dcp.load({}, storage_reader=reader, planner=make_planner(), no_dist=True)
    except BaseException as caught:  # noqa: BLE001  # whatever it is, the consumer has to hear of it
        error = caught
    scope.discard(arrivals)
    arrivals.end(error)


def _planner(
    deliver: Deliver, names: Collection[str] | None, state_dict: StateDict | None, device: torch.device | str
) -> ArrivalsPlanner:
    """Which tensors are wanted: those of ``names``, else those of the state dict, else all."""
    flat, _ = flatten_state_dict(resolved(state_dict)) if state_dict is not None else ({}, None)
    targets = {name: value for name, value in flat.items() if isinstance(value, torch.Tensor)}
    if names is None and state_dict is not None:
        names = targets.keys()
    return ArrivalsPlanner(deliver, names=names, targets=targets, device=device)
