"""Checkpoints on the local endpoint, and stores that lead there."""

from __future__ import annotations

import pytest

from aiockpt.blocking.store import Store
from aiockpt.config import S3ClientConfig
from aiockpt.model import MiB
from dcp.checkpoints import Place
from dcp.conftest import local  # noqa: F401  # a fixture


@pytest.fixture
def store(local: Place) -> Store:  # noqa: F811  # the fixture
    config = S3ClientConfig(
        endpoint_url=local.server.endpoint_url, part_size=5 * MiB, backoff_base_s=0.001, max_attempts=3
    )
    return Store(config, "us-east-1")
