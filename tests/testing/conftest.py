from __future__ import annotations

from collections.abc import Iterator

import pytest

from aiockpt.testing import LocalEndpoint, Shape
from testing.rawclient import RawClient


@pytest.fixture(scope="module")
def shared_endpoint() -> Iterator[LocalEndpoint]:
    with LocalEndpoint() as endpoint:
        yield endpoint


@pytest.fixture
def endpoint(shared_endpoint: LocalEndpoint) -> LocalEndpoint:
    """One process for a module's tests, calm, unshaped and with its counters at zero."""
    shared_endpoint.clear_faults()
    shared_endpoint.set_shape(Shape())
    shared_endpoint.reset_stats()
    return shared_endpoint


@pytest.fixture
def raw(endpoint: LocalEndpoint) -> RawClient:
    return RawClient(endpoint.url)
