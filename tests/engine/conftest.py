"""Engines on the local endpoint, impatient and fast to try again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

import pytest
import uvloop

from aiockpt.bridge import Bridge
from aiockpt.config import S3ClientConfig
from aiockpt.engine.engine import LoopEngine
from aiockpt.model import MiB
from aiockpt.testing import LocalEndpoint
from s3.conftest import service_models_read_once  # noqa: F401  # a fixture

#: For tests of what must hold whether an engine has its connections to itself or shares them with another loop thread.
one_or_two_threads = pytest.mark.parametrize("others", [0, 1], indirect=True, ids=["one thread", "two threads"])


@pytest.fixture
def config(local_endpoint: LocalEndpoint, monkeypatch: pytest.MonkeyPatch) -> S3ClientConfig:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", local_endpoint.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", local_endpoint.secret_key)
    return S3ClientConfig(
        endpoint_url=local_endpoint.url,
        part_size=5 * MiB,
        backoff_base_s=0.001,
        stall_timeout_s=0.4,
        max_attempts=4,
        hedge_share=0,  # a busy machine must not change how many requests there are; test_hedging has it on
    )


@pytest.fixture
def others(request: pytest.FixtureRequest) -> Iterator[Sequence[Bridge]]:
    """The other loop threads that connections are spread over: none, or as many as the test says."""
    made = [Bridge(f"loop-{2 + number}") for number in range(getattr(request, "param", 0))]
    yield made
    for bridge in made:
        bridge.close()


@pytest.fixture
async def engine(config: S3ClientConfig, others: Sequence[Bridge]) -> AsyncIterator[LoopEngine]:
    async with LoopEngine(config, others=others) as made:
        yield made


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The bridge's loop."""
    return {"uvloop": uvloop.new_event_loop}
