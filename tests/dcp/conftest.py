"""A place for checkpoints on the local endpoint, and on each server that nobody here wrote."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from aiockpt.testing import LocalEndpoint
from dcp.checkpoints import Place
from servers.base import S3Server
from servers.process import free_port as unused_port


@pytest.fixture
def local(local_endpoint: LocalEndpoint, local_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A fresh bucket on the local endpoint, its counters at zero."""
    endpoint = local_endpoint
    server = S3Server("local", endpoint.url, endpoint.access_key, endpoint.secret_key, endpoint.region)
    return _entered(Place(server, local_bucket), monkeypatch)


@pytest.fixture
def foreign(s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A fresh bucket on Swift, moto and rclone in turn."""
    return _entered(Place(s3_server, bucket), monkeypatch)


@pytest.fixture
def behind_tls(tls_server: S3Server, tls_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A fresh bucket on each of them over TLS, with a private CA."""
    return _entered(Place(tls_server, tls_bucket), monkeypatch)


def _entered(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", place.server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", place.server.secret_key)
    return place


@pytest.fixture
def free_port() -> int:
    """A port of this machine that nobody listens on."""
    return unused_port()


@pytest.fixture
def group(free_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of this process alone, which saves in a process need; that one is there for the test only."""
    for name, value in (
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", str(free_port)),
        ("WORLD_SIZE", "1"),
        ("RANK", "0"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.distributed.checkpoint._async_process_executor._CHECKPOINT_PROCESS", None)
    torch.distributed.init_process_group("gloo")
    yield
    torch.distributed.destroy_process_group()
