"""Two saves at one path: the second one is made whole while the first is held at each of its requests in turn."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from aiockpt.blocking.store import Store
from aiockpt.config import S3ClientConfig
from aiockpt.dcp.delete import contents_of
from aiockpt.dcp.sweep import sweep
from aiockpt.engine.engine import LoopEngine
from aiockpt.errors import IntegrityError, MetadataError, NotFound, PreconditionFailed
from aiockpt.model import MiB, ObjectId
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from dcp.checkpoints import Place, StateDict, emptied, failure

#: More requests than a save makes; the test ends with the first save that is not held.
MAX_REQUESTS = 40

OPTIONS: dict[str, Any] = {"thread_count": 2, "part_size": 5 * MiB}


def state(value: int) -> StateDict:
    """Two objects, one of them of two parts."""
    return {
        "large": torch.full((5 * MiB + 1,), value, dtype=torch.uint8),
        "small": torch.full((9,), value, dtype=torch.uint8),
    }


def loaded(place: Place) -> int:
    target = place.load(emptied(state(0)))
    (value,) = {int(bound) for tensor in target.values() for bound in (tensor.min(), tensor.max())}
    return value


def loaded_or_error(place: Place) -> int | BaseException:
    try:
        return loaded(place)
    except CheckpointException as error:
        return failure(error)


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


class Writer:
    """A save in a thread, with an engine of its own."""

    def __init__(self, place: Place, value: int, **options: Any) -> None:
        self.value = value
        self.error: BaseException | None = None
        self._place = place
        self._options = options
        self._thread = threading.Thread(target=self._save)
        self._thread.start()

    def _save(self) -> None:
        try:
            self._place.save(state(self.value), **OPTIONS, **self._options)
        except CheckpointException as error:
            self.error = failure(error)

    def ended(self, timeout_s: float) -> bool:
        self._thread.join(timeout_s)
        return not self._thread.is_alive()


@contextmanager
def held_at(request: int, place: Place, value: int) -> Iterator[tuple[Writer, bool]]:
    """A writer that is held before its ``request``-th request, from 0; and whether it is, or has ended before."""
    own = {"max_attempts": 7}  # equal settings share an engine
    config = S3ClientConfig().merged(**place.settings, **own, part_size=OPTIONS["part_size"])
    with Store(config, place.server.region).lease() as lease, pytest.MonkeyPatch.context() as patch:
        gate = Gate(lease.engine, request)
        patch.setattr(lease.engine, "attempts", gate)
        writer = Writer(place, value, **own)
        while not (held := gate.reached.wait(0.002)) and not writer.ended(0):
            pass
        yield writer, held
        lease.bridge.call_soon(gate.open)
        assert writer.ended(30)


def tidied(place: Place) -> Iterator[list[str]]:
    """What is there after a sweep, and what the checkpoint consists of."""
    store, checkpoint = Store(S3ClientConfig(**place.settings), place.server.region), ObjectId(place.bucket, "ckpt")
    store.run(lambda engine: sweep(engine, checkpoint, grace=timedelta(0)))
    found = store.run(lambda engine: contents_of(engine, checkpoint))
    yield place.keys()
    yield sorted([*(row.key for row in found.metadata), *found.data])


@pytest.mark.parametrize("overwrite", [False, True])
def test_one_wins_wherever_the_other_is(local: Place, overwrite: bool) -> None:
    both: list[bool] = []
    for request in range(MAX_REQUESTS):
        if overwrite:
            local.save(state(100), **OPTIONS)
        with held_at(request, local, 2 * request + 1) as (early, held):
            late = Writer(local, 2 * request + 2)
            assert late.ended(30)
        assert late.error is None
        both.append(early.error is None)
        if early.error is not None:
            assert isinstance(early.error, PreconditionFailed)
            assert local.uri("ckpt") in str(early.error)
        winner = late if request else early  # that has not yet looked what is there
        assert loaded(local) == winner.value
        assert local.uploads() == []
        there, its = tidied(local)
        assert there == its
        assert loaded(local) == winner.value
        if not held:
            break
        for key in there if not overwrite else ():
            local.client.delete_object(Bucket=local.bucket, Key=key)
    assert both[0]  # one after the other
    assert both[1:] == sorted(both[1:])  # from its commit on the early one has won, too, and was replaced
    assert both.count(False) >= 6
    assert not held


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_store_that_ignores_conditions_shows_what_was_mixed(
    local: Place, local_endpoint: LocalEndpoint, overwrite: bool
) -> None:
    """Nobody can be refused there; what one overwrote of the other is an error when it is loaded, and never weights."""
    local_endpoint.add_fault(Fault(FaultKind.IGNORE_CONDITIONS, count=None))
    mixed = 0
    for request in range(MAX_REQUESTS):
        if overwrite:
            local.save(state(100), overwrite=True, **OPTIONS)
        with held_at(request, local, 2 * request + 1) as (early, held):
            late = Writer(local, 2 * request + 2)
            assert late.ended(30)
        assert early.error is late.error is None
        found = loaded_or_error(local)
        assert found in {early.value, late.value} or isinstance(found, IntegrityError | MetadataError | NotFound)
        mixed += not isinstance(found, int)
        if not held:
            break
        there = local.keys()
        local.client.delete_objects(Bucket=local.bucket, Delete={"Objects": [{"Key": key} for key in there]})
    assert not held
    assert mixed < MAX_REQUESTS // 2
