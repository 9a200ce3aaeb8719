"""Credentials in the environment, and S3 clients on the local endpoint."""

from __future__ import annotations

import pytest

from aiockpt.config import S3ClientConfig
from aiockpt.testing import LocalEndpoint

ACCESS_KEY = "AKIAEXAMPLEEXAMPLE"
SECRET_KEY = "very-secret-key"


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)


@pytest.fixture
def local_config(local_endpoint: LocalEndpoint, monkeypatch: pytest.MonkeyPatch) -> S3ClientConfig:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", local_endpoint.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", local_endpoint.secret_key)
    return S3ClientConfig(endpoint_url=local_endpoint.url)
