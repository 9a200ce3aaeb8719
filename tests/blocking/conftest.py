"""Stores on the local endpoint, impatient and fast to try again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from aiockpt.blocking.store import Store
from aiockpt.config import S3ClientConfig
from aiockpt.engine.engine import LoopEngine
from aiockpt.model import MiB, ObjectId
from aiockpt.testing import LocalEndpoint

#: For tests of what must hold whatever the number of loop threads.
one_or_two_threads = pytest.mark.parametrize("loop_threads", [1, 2], indirect=True)


@pytest.fixture
def loop_threads(request: pytest.FixtureRequest) -> int:
    """How many the stores use: one, or as many as the test says."""
    count: int = getattr(request, "param", 1)
    return count


@pytest.fixture
def config(local_endpoint: LocalEndpoint, loop_threads: int, monkeypatch: pytest.MonkeyPatch) -> S3ClientConfig:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", local_endpoint.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", local_endpoint.secret_key)
    return S3ClientConfig(
        endpoint_url=local_endpoint.url,
        part_size=5 * MiB,
        backoff_base_s=0.001,
        stall_timeout_s=2.0,
        max_attempts=3,
        loop_threads=loop_threads,
    )


@pytest.fixture
def store(config: S3ClientConfig) -> Store:
    return Store(config)


def reserved_bytes(store: Store) -> int:
    """What is reserved of the store's budget."""
    with store.lease() as lease:
        return lease.engine.budget.reserved_bytes


def open_uploads(store: Store, bucket: str) -> int:
    async def count(engine: LoopEngine) -> int:
        return len([row async for row in engine.pending_uploads(ObjectId(bucket, ""))])

    return store.run(count)


@pytest.fixture
def tight_store(config: S3ClientConfig) -> Store:
    """One whose byte budget is smaller than a part."""
    return Store(config.merged(memory_bytes=2 * MiB))


@pytest.fixture(autouse=True)
def budgets_end_empty(store: Store, tight_store: Store) -> Iterator[None]:
    """Whatever a test does, its stores have nothing reserved afterwards."""
    yield
    for used in (store, tight_store):
        assert reserved_bytes(used) == 0


@pytest.fixture
def at(local_bucket: str) -> Callable[[str], ObjectId]:
    """Names objects in a fresh bucket."""
    return lambda key: ObjectId(local_bucket, key)
