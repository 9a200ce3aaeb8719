from __future__ import annotations

import asyncio
import random

import pytest

from aiockpt.awaitable.engine import Engine
from aiockpt.blocking.reading import CHUNK_BYTES
from aiockpt.errors import ClosedError, NotFound
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from awaitable.states import cancelled, threads_left, until
from dcp.checkpoints import Place

DATA = random.Random(3).randbytes(2 * CHUNK_BYTES + 1234)


@pytest.fixture
def uri(local: Place, local_endpoint: LocalEndpoint) -> str:
    local_endpoint.replace_object(local.bucket, "key", DATA)
    return local.uri("key")


async def test_chunks(engine: Engine, uri: str) -> None:
    async with engine.open(uri) as reader:
        chunks = [bytes(chunk) async for chunk in reader]
    assert b"".join(chunks) == DATA
    assert len(chunks) == 3


async def test_so_many_bytes_at_a_time(engine: Engine, uri: str) -> None:
    async with engine.open(uri) as reader:
        assert await reader.read(0) == b""
        assert await reader.read(10) == DATA[:10]
        assert await reader.read(CHUNK_BYTES) == DATA[10 : 10 + CHUNK_BYTES]
        rest = await anext(reader)  # what is left of the chunk
        assert await reader.read() == DATA[10 + CHUNK_BYTES + len(rest) :]
        assert await reader.read(5) == b""
        assert await reader.read() == b""


@pytest.mark.parametrize(("start", "end"), [(0, 10), (5, None), (CHUNK_BYTES - 1, CHUNK_BYTES + 1), (7, 7)])
async def test_ranges(engine: Engine, uri: str, start: int, end: int | None) -> None:
    async with engine.open(uri, start, end) as reader:
        assert await reader.read() == DATA[start:end]


async def test_a_missing_object(engine: Engine, local: Place) -> None:
    with pytest.raises(NotFound):
        await engine.open(local.uri("missing")).read(1)


async def test_leaving_early_ends_what_is_fetched_ahead(
    engine: Engine, uri: str, local_endpoint: LocalEndpoint
) -> None:
    local_endpoint.add_fault(Fault(FaultKind.STALL, "GetObject", count=None, after_bytes=1000, key="key"))
    reader = engine.open(uri, 0, len(DATA))
    task = asyncio.create_task(reader.read(1))
    await until(lambda: local_endpoint.stats().requests_current)
    await cancelled(task)
    assert threads_left() == []
    with pytest.raises((StopAsyncIteration, ClosedError)):
        await anext(reader)
    await reader.aclose()
    await reader.aclose()
