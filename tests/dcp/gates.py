"""Writers whose requests are held, to have them happen in any order: saves in threads, with an engine each."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from aiockpt.blocking.store import Store
from aiockpt.config import S3ClientConfig
from aiockpt.engine.engine import LoopEngine
from aiockpt.model import MiB
from aiockpt.plan.retry import Operation
from dcp.checkpoints import Place, StateDict, emptied, failure

TIMEOUT_S = 30


def state(value: int, objects: int = 2) -> StateDict:
    """So many objects, the first one of two parts."""
    sizes = {"large": 5 * MiB + 1} | {f"small{n}": 9 - n for n in range(objects - 1)}
    return {name: torch.full((size,), value, dtype=torch.uint8) for name, size in sizes.items()}


def options(objects: int = 2) -> dict[str, Any]:
    """How to save it so."""
    return {"thread_count": objects, "part_size": 5 * MiB}


def loaded(place: Place, objects: int = 2) -> int:
    """The value that all elements of the checkpoint have."""
    target = place.load(emptied(state(0, objects)))
    (value,) = {int(bound) for tensor in target.values() for bound in (tensor.min(), tensor.max())}
    return value


class Writer:
    """A save in a thread."""

    def __init__(self, place: Place, value: int, objects: int = 2, **settings: Any) -> None:
        self.value = value
        self.error: BaseException | None = None
        self._place = place
        self._objects = objects
        self._settings = settings
        self._thread = threading.Thread(target=self._save)
        self._thread.start()

    def _save(self) -> None:
        try:
            self._place.save(state(self.value, self._objects), **options(self._objects), **self._settings)
        except CheckpointException as error:
            self.error = failure(error)

    def ended(self, timeout_s: float) -> bool:
        self._thread.join(timeout_s)
        return not self._thread.is_alive()


class Gate:
    """Takes the place of an engine's ``attempts``: lets so many requests pass, and holds others until it is opened."""

    def __init__(self, engine: LoopEngine, passing: int) -> None:
        self.reached = threading.Event()  # all that passed have been answered, and one is held
        self._attempts = engine.attempts
        self._passing = passing
        self._open = asyncio.Event()
        self._held = self._running = 0

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._passing and not self._open.is_set():
            self._held += 1
            self._look()
            await self._open.wait()
        self._passing -= bool(self._passing)
        self._running += 1
        try:
            return await self._attempts(*args, **kwargs)
        finally:
            self._running -= 1
            self._look()

    def _look(self) -> None:
        if self._held and not self._running:
            self.reached.set()

    def open(self) -> None:
        """On the loop thread."""
        self._open.set()


def store_of(place: Place, own: dict[str, Any]) -> Store:
    """With a writer's engine: equal settings share one."""
    config = S3ClientConfig().merged(**place.settings, **own, part_size=options()["part_size"])
    return Store(config, place.server.region)


#: What makes the engine of a writer that is held another than that of who is not.
OWN = {"max_attempts": 7}


@contextmanager
def held_at(request: int, place: Place, value: int) -> Iterator[tuple[Writer, bool]]:
    """A writer that is held before its ``request``-th request, from 0; and whether it is, or has ended before."""
    with store_of(place, OWN).lease() as lease, pytest.MonkeyPatch.context() as patch:
        gate = Gate(lease.engine, request)
        patch.setattr(lease.engine, "attempts", gate)
        writer = Writer(place, value, **OWN)
        while not (held := gate.reached.wait(0.002)) and not writer.ended(0):
            pass
        yield writer, held
        lease.bridge.call_soon(gate.open)
        assert writer.ended(TIMEOUT_S)


class Turnstile:
    """Takes the place of an engine's ``attempts``: what makes an object stand waits for its turn."""

    def __init__(self, engine: LoopEngine) -> None:
        self.waiting: list[asyncio.Future[None]] = []
        self._attempts = engine.attempts
        self._running = 0

    async def __call__(self, operation: Operation, *args: Any, **kwargs: Any) -> Any:
        if operation in {Operation.PUT, Operation.COMPLETE}:
            turn = asyncio.get_running_loop().create_future()
            self.waiting.append(turn)
            await turn
        self._running += 1
        try:
            return await self._attempts(operation, *args, **kwargs)
        finally:
            self._running -= 1

    @property
    def stopped(self) -> bool:
        """Whether nothing happens before somebody has a turn."""
        return bool(self.waiting) and not self._running

    def turn(self, which: int, given: threading.Event) -> None:
        """On the loop thread."""
        self._running += 1  # until it runs
        self.waiting.pop(which).set_result(None)
        asyncio.get_running_loop().call_soon(self._began)
        given.set()

    def _began(self) -> None:
        self._running -= 1


def in_turns(place: Place, values: list[int], objects: int, rng: random.Random) -> list[Writer]:
    """Saves at one path at the same time, what makes objects stand in an order that is drawn. They have ended."""
    with ExitStack() as exits:
        patch = exits.enter_context(pytest.MonkeyPatch.context())
        gates, writers = [], []
        for number, value in enumerate(values):
            own = {"max_attempts": 7 + number}
            lease = exits.enter_context(store_of(place, own).lease())
            gates.append(gate := Turnstile(lease.engine))
            patch.setattr(lease.engine, "attempts", gate)
            writers.append(Writer(place, value, objects, **own))
        while not all(writer.ended(0) for writer in writers):
            settled = all(gate.stopped or writer.ended(0.001) for gate, writer in zip(gates, writers, strict=True))
            if settled and (waiting := [gate for gate in gates if gate.waiting]):
                gate = rng.choice(waiting)
                given = threading.Event()
                lease.bridge.call_soon(gate.turn, rng.randrange(len(gate.waiting)), given)
                assert given.wait(TIMEOUT_S)
    return writers
