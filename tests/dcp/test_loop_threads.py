"""Saves and loads over several loop threads: the same requests and the same bytes, and each thread has its share."""

from __future__ import annotations

import threading
from collections import Counter
from itertools import count
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from aiockpt.dcp import recording
from aiockpt.errors import AccessDenied, ConfigError
from aiockpt.model import MiB
from aiockpt.observe.exchange import Exchange
from aiockpt.observe.report import Report
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from aiockpt.transport import pool
from aiockpt.transport.connection import Connection
from dcp.checkpoints import Place, emptied, failure, load, random_tensor, same_bits, save

#: One tensor of six parts, and some of other kinds.
STATE = {
    "one": random_tensor((30, 256, 1024), torch.float32),
    "small": {str(seed): random_tensor((300,), torch.bfloat16, seed) for seed in range(5)},
    "scattered": random_tensor((700, 300), torch.float32).t(),
    "step": 3,
}

#: No hedges, which a busy machine would bring about.
SETTINGS: dict[str, Any] = {"part_size": 5 * MiB, "hedge_share": 0.0}
THREADS = ["aiockpt-loop", "aiockpt-loop-2", "aiockpt-loop-3"]


class Carried(Counter[tuple[str, str]]):
    """How many exchanges each thread has performed, by its name and their operation."""


@pytest.fixture
def carried(monkeypatch: pytest.MonkeyPatch) -> Carried:
    counts, stamp = Carried(), pool._stamp

    def counting(exchange: Exchange, connection: Connection, connected_s: float) -> None:
        counts[threading.current_thread().name, exchange.operation] += 1
        stamp(exchange, connection, connected_s)

    monkeypatch.setattr(pool, "_stamp", counting)
    return counts


def there_and_back(place: Place, threads: int, objects: int, fresh: int = 0) -> list[Report | None]:
    """Saves and loads, with an engine that nothing has been learned by; returns the reports."""
    settings = SETTINGS | {"loop_threads": threads, "stall_timeout_s": 30.0 + fresh}
    writer = place.writer(f"ckpt-{threads}", thread_count=objects, **settings)
    reader = place.reader(f"ckpt-{threads}", **settings)
    save(STATE, writer)
    assert same_bits(load(emptied(STATE), reader), STATE)
    return [writer.report, reader.report]


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("objects", [1, 3])
def test_each_thread_has_its_share(
    threads: int, objects: int, local: Place, local_endpoint: LocalEndpoint, carried: Carried
) -> None:
    """Of one object's parts and ranges, too; and there are as many requests, of as many bytes, as with one thread."""
    fresh = 10 * threads + objects
    alone = [ended(report) for report in there_and_back(local, 1, objects, fresh)]
    assert {name for name, _ in carried} == {THREADS[0]}
    carried.clear()
    for operation in ("UploadPart", "GetObject"):  # the first are under way when the others come
        local_endpoint.add_fault(Fault(FaultKind.LATE, operation, key=".distcp", count=threads, delay_s=0.3))
    assert [ended(report) for report in there_and_back(local, threads, objects, fresh)] == alone
    for operation in ("UploadPart", "GetObject"):
        assert all(carried[name, operation] for name in THREADS[:threads])
    assert {name for name, _ in carried} == set(THREADS[:threads])


def ended(report: Report | None) -> tuple[dict[str, int], int, int, int]:
    """What must not depend on the number of threads."""
    assert report is not None
    return dict(report.operations), report.sent_bytes, report.received_bytes, report.wanted_bytes


def test_reports_count_the_time_of_all_threads(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    times = count(step=100)
    monkeypatch.setattr(recording, "loop_cpu_s", lambda: {"loop": 0.0, "loop-2": float(next(times))})
    for report in there_and_back(local, 2, 1):
        assert report is not None
        assert report.cpu_s >= 100


@pytest.mark.parametrize("operation", ["UploadPart", "GetObject"])
def test_one_failure_ends_what_all_threads_do(operation: str, local: Place, local_endpoint: LocalEndpoint) -> None:
    """The other requests are stuck; nothing is left of them."""
    settings = SETTINGS | {"loop_threads": 2, "stall_timeout_s": 1000.0}
    local.save(STATE, "stands", **settings)
    local_endpoint.add_fault(Fault(FaultKind.ERROR, operation, key=".distcp", skip=5, status=403, code="AccessDenied"))
    local_endpoint.add_fault(Fault(FaultKind.STALL, operation, key=".distcp", count=5, after_bytes=1000))
    with pytest.raises(CheckpointException) as caught:
        if operation == "UploadPart":
            local.save(STATE, "new", **settings)
        else:
            local.load(emptied(STATE), "stands", **settings)
    assert isinstance(failure(caught.value), AccessDenied)
    local_endpoint.clear_faults()
    assert local.uploads() == []
    assert local.keys("new/") == []
    assert same_bits(local.load(emptied(STATE), "stands", **settings), STATE)


def test_threads_are_started_once(local: Place) -> None:
    settings = SETTINGS | {"loop_threads": 2}
    local.save(STATE, **settings)
    before = threading.enumerate()
    for round_ in range(3):
        local.load(emptied(STATE), stall_timeout_s=20.0 + round_, **settings)  # each with an engine of its own
    assert {thread.name for thread in threading.enumerate()} - {thread.name for thread in before} == set()
    assert len([thread for thread in threading.enumerate() if thread.name == "aiockpt-loop-2"]) == 1


def test_too_many(local: Place) -> None:
    with pytest.raises(CheckpointException) as caught:
        local.save(STATE, loop_threads=9, max_connections=8)
    assert isinstance(failure(caught.value), ConfigError)
