from __future__ import annotations

from typing import IO, Any, cast

import pytest
import torch

from aiockpt.blocking.writing import S3Writer
from aiockpt.checkpoint import S3Checkpoint
from aiockpt.config import S3ClientConfig
from aiockpt.errors import S3Exception
from aiockpt.s3reader import S3ReaderConstructor
from aiockpt.testing import LocalEndpoint


@pytest.fixture
def checkpoint(local_endpoint: LocalEndpoint, monkeypatch: pytest.MonkeyPatch) -> S3Checkpoint:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", local_endpoint.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", local_endpoint.secret_key)
    return S3Checkpoint("us-east-1", local_endpoint.url)


STATE: dict[str, Any] = {"a": torch.arange(100_000), "b": {"c": torch.ones(3, 4), "d": "text"}}


def save(writer: S3Writer) -> None:
    torch.save(STATE, cast("IO[bytes]", writer))


def test_there_and_back(checkpoint: S3Checkpoint, local_bucket: str) -> None:
    uri = f"s3://{local_bucket}/dir/state +%.pt"
    with checkpoint.writer(uri) as writer:
        save(writer)
    with checkpoint.reader(uri) as reader:
        loaded = torch.load(reader, weights_only=True)
    assert torch.equal(loaded["a"], STATE["a"])
    assert torch.equal(loaded["b"]["c"], STATE["b"]["c"])
    assert loaded["b"]["d"] == "text"


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "constructor", [S3ReaderConstructor.sequential(), S3ReaderConstructor.range_based(), S3ReaderConstructor.default()]
)
def test_every_kind_of_reader_and_format(
    local_endpoint: LocalEndpoint, local_bucket: str, checkpoint: S3Checkpoint, constructor: Any, zipped: bool
) -> None:
    uri = f"s3://{local_bucket}/state.pt"
    with checkpoint.writer(uri) as writer:
        torch.save(STATE, cast("IO[bytes]", writer), _use_new_zipfile_serialization=zipped)
    reading = S3Checkpoint("us-east-1", local_endpoint.url, reader_constructor=constructor)
    with reading.reader(uri) as reader:
        loaded = torch.load(reader, weights_only=True)
    assert torch.equal(loaded["a"], STATE["a"])
    assert torch.equal(loaded["b"]["c"], STATE["b"]["c"])


def test_another_kind_of_reader(local_endpoint: LocalEndpoint, local_bucket: str, checkpoint: S3Checkpoint) -> None:
    uri = f"s3://{local_bucket}/state.pt"
    with checkpoint.writer(uri) as writer:
        save(writer)
    ranged = S3Checkpoint(
        "us-east-1", local_endpoint.url, S3ClientConfig(), S3ReaderConstructor.range_based(buffer_size=1000)
    )
    with ranged.reader(uri) as reader:
        assert torch.equal(torch.load(reader, weights_only=True)["a"], STATE["a"])


def test_a_failed_save_leaves_nothing(checkpoint: S3Checkpoint, local_bucket: str) -> None:
    uri = f"s3://{local_bucket}/state.pt"
    with pytest.raises(LookupError), checkpoint.writer(uri) as writer:
        save(writer)
        raise LookupError
    with pytest.raises(S3Exception), checkpoint.reader(uri) as reader:
        reader.read()


@pytest.mark.parametrize("uri", ["", "file:///x", "bucket/key"])
def test_what_is_no_uri(checkpoint: S3Checkpoint, uri: str) -> None:
    for opening in (checkpoint.reader, checkpoint.writer):
        with pytest.raises(ValueError, match="Only s3:// URIs are supported"):
            opening(uri)


@pytest.mark.parametrize(
    ("uri", "why"), [("s3://", "Bucket"), ("s3:///key", "Bucket"), ("s3://b", "key"), ("s3://b/", "key")]
)
def test_what_names_no_object(checkpoint: S3Checkpoint, uri: str, why: str) -> None:
    for opening in (checkpoint.reader, checkpoint.writer):
        with pytest.raises(ValueError, match=why):
            opening(uri)


def test_settings_by_name(local_endpoint: LocalEndpoint) -> None:
    S3Checkpoint("us-east-1", unsigned=True)
    with pytest.raises(TypeError, match="no_such_setting"):
        S3Checkpoint("us-east-1", no_such_setting=1)


def test_making_a_reader_asks_nobody() -> None:
    reader = S3Checkpoint("us-east-1", "http://no-such-host.invalid", unsigned=True).reader("s3://bucket/key")
    assert reader.readable()
