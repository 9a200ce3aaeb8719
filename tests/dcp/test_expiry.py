"""Temporary credentials that expire in the middle of a save or a load: it fetches new ones, once, and goes on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from aiockpt.errors import ServiceError
from aiockpt.model import MiB
from aiockpt.s3.client import S3Client
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from dcp.checkpoints import Place, emptied, failure, random_tensor, same_bits
from s3.conftest import service_models_read_once  # noqa: F401  # a fixture

STATE = {
    "large": random_tensor((4000, 1000), torch.float32),  # four parts, several ranges
    **{f"small {number}": random_tensor((300,), torch.float32, number) for number in range(5)},
}
SETTINGS: dict[str, Any] = {"part_size": 5 * MiB, "backoff_base_s": 0.001, "backoff_cap_s": 0.005}

#: A credential_process: each run notes itself, and gives other credentials than the one before.
SOURCE = """
import json, sys
with open(sys.argv[1], "a+b", buffering=0) as runs:
    runs.write(b"x")
    number = runs.tell()
print(json.dumps({
    "Version": 1, "AccessKeyId": f"{sys.argv[2]}-{number}", "SecretAccessKey": "secret", "SessionToken": f"{number}",
    "Expiration": "2099-01-01T00:00:00Z",
}))
"""


class Source:
    """A credential_process, and how often it has been run."""

    def __init__(self, folder: Path, access_key: str) -> None:
        self._runs = folder / "runs"
        self._runs.touch()
        self.config = folder / "config"
        program = folder / "source.py"
        program.write_text(SOURCE)
        self.config.write_text(
            f"[default]\ncredential_process = {sys.executable} -S {program} {self._runs} {access_key}\n"
        )

    @property
    def runs(self) -> int:
        return self._runs.stat().st_size


@pytest.fixture
def source(local: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    made = Source(tmp_path, local.server.access_key)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(made.config))
    return made


def expire(endpoint: LocalEndpoint, operation: str, skip: int = 0) -> None:
    endpoint.add_fault(Fault(FaultKind.EXPIRE, operation, skip=skip))


@pytest.mark.parametrize(
    ("operation", "skip"),
    [
        ("HeadObject", 0),
        ("CreateMultipartUpload", 0),
        ("UploadPart", 2),
        ("CompleteMultipartUpload", 0),
        ("PutObject", 0),
    ],
)
def test_a_save_goes_on(local: Place, source: Source, local_endpoint: LocalEndpoint, operation: str, skip: int) -> None:
    expire(local_endpoint, operation, skip)
    local.save(STATE, **SETTINGS)
    assert local_endpoint.stats().errors["ExpiredToken"] >= 1
    assert source.runs == 2
    assert local.uploads() == []
    assert same_bits(local.load(emptied(STATE), **SETTINGS), STATE)


@pytest.mark.parametrize(("operation", "skip"), [("GetObject", 0), ("GetObject", 3)])
def test_a_load_goes_on(local: Place, source: Source, local_endpoint: LocalEndpoint, operation: str, skip: int) -> None:
    local.save(STATE, **SETTINGS)
    expire(local_endpoint, operation, skip)
    assert same_bits(local.load(emptied(STATE), **SETTINGS), STATE)
    assert local_endpoint.stats().errors["ExpiredToken"] >= 1
    assert source.runs == 2


@pytest.mark.parametrize("direction", ["save", "load"])
def test_the_fallback_goes_on(
    local: Place, source: Source, local_endpoint: LocalEndpoint, monkeypatch: pytest.MonkeyPatch, direction: str
) -> None:
    async def fallback(client: S3Client, bucket: str) -> Any:
        return client._fallback

    monkeypatch.setattr(S3Client, "bulk", fallback)
    expire(local_endpoint, "UploadPart" if direction == "save" else "GetObject")
    local.save(STATE, **SETTINGS)
    assert same_bits(local.load(emptied(STATE), **SETTINGS), STATE)
    assert local_endpoint.stats().errors["ExpiredToken"] >= 1
    assert source.runs == 2


def test_credentials_that_expire_again_and_again(local: Place, source: Source, local_endpoint: LocalEndpoint) -> None:
    for skip in (0, 4, 8):
        expire(local_endpoint, "", skip)
    local.save(STATE, **SETTINGS)
    assert same_bits(local.load(emptied(STATE), **SETTINGS), STATE)
    assert 2 <= source.runs <= 4


def test_credentials_that_cannot_be_renewed(local: Place, local_endpoint: LocalEndpoint) -> None:
    """Those of the environment are the same when they are asked for again."""
    expire(local_endpoint, "PutObject")
    with pytest.raises(CheckpointException) as raised:
        local.save({"x": torch.ones(3)}, max_attempts=3, **SETTINGS)
    error = failure(raised.value)
    assert isinstance(error, ServiceError)
    assert (error.code, error.attempts) == ("ExpiredToken", 3)
    assert "renew the temporary credentials" in str(error)
