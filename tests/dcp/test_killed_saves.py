"""Saves that are killed (SIGKILL) at each of their requests: the bucket holds the old checkpoint or the new one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection

import pytest
from torch.distributed.checkpoint.api import CheckpointException

from aiockpt.blocking.store import Store
from aiockpt.config import S3ClientConfig
from aiockpt.dcp.delete import contents_of
from aiockpt.dcp.sweep import sweep
from aiockpt.errors import NotFound
from aiockpt.model import ObjectId
from aiockpt.testing import Fault, FaultKind, LocalEndpoint, Stats
from dcp.checkpoints import Place, emptied, failure
from dcp.forks import FORKS
from dcp.gates import held_at, state
from dcp.workers import saving

#: More requests than the save makes; the sweep ends with the first save that is not stopped.
MAX_REQUESTS = 40

TIMEOUT_S = 30


@pytest.fixture
def orders(local: Place) -> Iterator[Connection]:
    """The line to a process that forks savers."""
    line, other = FORKS.Pipe()
    process = FORKS.Process(target=saving.serve, args=(local.server.environ(), other))
    process.start()
    assert line.recv() == "ready"
    yield line
    line.send(None)
    process.join(TIMEOUT_S)


def all_held(stats: Stats) -> bool:
    return 0 < stats.faults == stats.requests_current


def killed_at(request: int, value: int, place: Place, endpoint: LocalEndpoint, orders: Connection) -> bool:
    """Save ``value`` in a process that is killed while the endpoint holds its ``request``-th request, from 0.

    Requests before that have been answered, those after it are held, too. What is held may have been performed (all but
    uploads have), or is when it is let go, if all of it had arrived: as with a network. False: the save made it.
    """
    endpoint.reset_stats()
    endpoint.add_fault(Fault(FaultKind.STALL, skip=request, count=None, after_bytes=None))
    orders.send((place.uri("ckpt"), value))
    process = orders.recv()
    while not orders.poll(0.005) and not all_held(endpoint.stats()):
        pass
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    exit_code: int = orders.recv()
    endpoint.clear_faults()
    while endpoint.stats().requests_current:
        pass
    assert exit_code in {0, -signal.SIGKILL}
    return exit_code != 0


@pytest.fixture(autouse=True)
def _endpoint_in_the_environment(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in local.server.environ().items():
        monkeypatch.setenv(name, value)


def loaded(place: Place) -> int | None:
    """The value that the checkpoint holds, of all its elements; None: there is none."""
    target = emptied(state(0))
    if not place.keys("ckpt/.metadata"):
        with pytest.raises(CheckpointException) as caught:
            place.load(target)
        assert isinstance(failure(caught.value), NotFound)
        return None
    place.load(target)
    (value,) = {int(bound) for tensor in target.values() for bound in (tensor.min(), tensor.max())}
    return value


def left_after_a_sweep(place: Place) -> list[str]:
    """What is at the path after a sweep; and no upload is."""
    store = Store(S3ClientConfig(**place.settings), place.server.region)
    store.run(lambda engine: sweep(engine, ObjectId(place.bucket, "ckpt"), grace=timedelta(0)))
    assert place.uploads() == []
    return place.keys()


def its_objects(place: Place) -> list[str]:
    store = Store(S3ClientConfig(**place.settings), place.server.region)
    found = store.run(lambda engine: contents_of(engine, ObjectId(place.bucket, "ckpt")))
    return sorted([*(row.key for row in found.metadata), *found.data])


@pytest.mark.parametrize("overwrites", [False, True])
def test_killed_at_every_request(
    local: Place, local_endpoint: LocalEndpoint, orders: Connection, overwrites: bool
) -> None:
    outcomes: list[bool] = []  # whether the new one stands
    for request in range(MAX_REQUESTS):
        old, new = (2 * request + 1, 2 * request + 2) if overwrites else (None, 2 * request + 2)
        if old is not None:
            saving.save_state(local.uri("ckpt"), old)
        killed = killed_at(request, new, local, local_endpoint, orders)
        found = loaded(local)
        assert found in {old, new}
        outcomes.append(found == new)
        left = left_after_a_sweep(local)
        assert left == ([] if found is None else its_objects(local))
        assert loaded(local) == found
        if not killed:
            break
        if not overwrites:
            for key in left:
                local.client.delete_object(Bucket=local.bucket, Key=key)
    assert outcomes == sorted(outcomes)  # from some request on it is the new one
    assert outcomes.count(False) >= 7
    assert outcomes[-1]
    assert not killed


def test_a_killed_writer_is_in_nobodys_way(local: Place, local_endpoint: LocalEndpoint, orders: Connection) -> None:
    """Another one has looked before it began, and goes on when it has been killed, at each of its requests in turn."""
    outcomes: list[bool] = []  # whether the killed one's stands
    for request in range(MAX_REQUESTS):
        other_value, new = 2 * request + 1, 2 * request + 2
        with held_at(2, local, other_value) as (other, held):
            assert held
            killed = killed_at(request, new, local, local_endpoint, orders)
            outcomes.append(loaded(local) == new)
        assert (other.error is None) != outcomes[-1]
        assert loaded(local) == (new if outcomes[-1] else other_value)
        left = left_after_a_sweep(local)
        assert left == its_objects(local)
        if not killed:
            break
        for key in left:
            local.client.delete_object(Bucket=local.bucket, Key=key)
    assert outcomes == sorted(outcomes)
    assert outcomes.count(False) >= 7
    assert not killed
