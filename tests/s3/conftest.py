"""Credentials in the environment, and S3 clients on the local endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
from botocore.loaders import JSONFileLoader

from aiockpt.config import S3ClientConfig
from aiockpt.testing import LocalEndpoint

ACCESS_KEY = "AKIAEXAMPLEEXAMPLE"
SECRET_KEY = "very-secret-key"


@pytest.fixture(scope="session", autouse=True)
def service_models_read_once() -> Iterator[None]:
    """botocore reads S3's model for every session, which takes most of the time of making a client."""
    loader = JSONFileLoader()
    read = cache(loader.load_file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JSONFileLoader, "load_file", lambda _, path: read(path))
        yield


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)


@pytest.fixture
def local_config(local_endpoint: LocalEndpoint, monkeypatch: pytest.MonkeyPatch) -> S3ClientConfig:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", local_endpoint.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", local_endpoint.secret_key)
    return S3ClientConfig(endpoint_url=local_endpoint.url)
