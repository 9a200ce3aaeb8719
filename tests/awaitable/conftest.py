"""A place for checkpoints on the local endpoint, and both kinds of loops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping

import pytest
import uvloop

from aiockpt.awaitable.engine import Engine
from aiockpt.blocking.store import Store
from aiockpt.config import S3ClientConfig
from aiockpt.model import MiB
from awaitable.states import threads_left
from dcp.checkpoints import Place
from dcp.conftest import local  # noqa: F401  # a fixture
from s3.conftest import service_models_read_once  # noqa: F401  # a fixture


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("ignore:torch.distributed is disabled"))


@pytest.fixture
def config(local: Place) -> S3ClientConfig:  # noqa: F811  # the fixture
    """Impatient, and fast to try again."""
    return S3ClientConfig(
        endpoint_url=local.server.endpoint_url,
        part_size=5 * MiB,
        backoff_base_s=0.001,
        stall_timeout_s=10.0,
        max_attempts=3,
    )


@pytest.fixture
def engine(config: S3ClientConfig) -> Engine:
    return Engine(config, "us-east-1")


@pytest.fixture(autouse=True)
def nothing_is_left(config: S3ClientConfig) -> Iterator[None]:
    """Whatever a test does: afterwards no thread of its operations runs, and nothing of the budget is reserved."""
    yield
    assert threads_left() == []
    with Store(config, "us-east-1").lease() as lease:
        assert lease.engine.budget.reserved_bytes == 0
