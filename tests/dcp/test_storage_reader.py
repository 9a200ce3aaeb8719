from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from aiockpt import S3ClientConfig, S3Exception, S3Reader, S3ReaderConstructor
from aiockpt.dcp import S3FileSystem, S3StorageReader, S3StorageWriter, storage_reader
from aiockpt.errors import AccessDenied, AiockptError, MetadataError, NotFound, TransportError
from aiockpt.s3reader import DCPS3ReaderConstructorProtocol, S3ReaderConstructorProtocol, SequentialS3Reader
from aiockpt.s3reader.constructor import DCPOptimizedConstructor
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from dcp.checkpoints import Place, emptied, failure, load, same_bits
from servers.base import make_bucket

STATE = {"w": torch.randn(300, 300), "v": torch.randn(5), "step": 3}


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> Any:
        raise AssertionError("network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_no_network_at_construction(no_sockets: None) -> None:
    config = S3ClientConfig(part_size=1)  # checked when a client is built
    S3StorageReader("nonsense region", "s3://bucket/x", config)
    S3StorageWriter("nonsense region", "s3://bucket/x", config)
    S3FileSystem("nonsense region", s3client_config=config)


def test_what_the_seeds_say_of_it() -> None:
    reader = S3StorageReader("us-east-1", "s3://bucket/x")
    assert isinstance(reader, FileSystemReader)
    assert isinstance(reader.fs, S3FileSystem)
    assert reader.path == "s3://bucket/x"
    assert reader.checkpoint_id == "s3://bucket/x"
    assert reader.sync_files is False
    assert isinstance(reader.fs.reader_constructor, DCPOptimizedConstructor)


def test_unknown_keywords() -> None:
    with pytest.raises(TypeError, match="endpointurl"):
        S3StorageReader("us-east-1", "s3://bucket/x", endpointurl="x")


@pytest.mark.parametrize(("checkpoint_id", "valid"), [("s3://b/x", True), (Path("x"), True), ("/x", False)])
def test_validate_checkpoint_id(checkpoint_id: Any, valid: bool) -> None:
    assert S3StorageReader.validate_checkpoint_id(checkpoint_id) is valid
    assert S3StorageWriter.validate_checkpoint_id(checkpoint_id) is valid


class Recording:
    """A user's own constructor."""

    def __init__(self) -> None:
        self.opened: list[str] = []

    def __call__(self, bucket: str, key: str, get_object_info: Any, get_stream: Any) -> S3Reader:
        self.opened.append(key)
        return SequentialS3Reader(bucket, key, get_object_info, get_stream)


class RecordingRanges(Recording):
    """One that wants to know what will be read."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int, str]] = []

    def set_item_ranges_by_file(self, plan_items: list[Any], storage_data: dict[Any, Any], base_path: Any) -> None:
        assert all(item.storage_index in storage_data for item in plan_items)
        self.told.append((len(plan_items), base_path))


def test_loads_go_through_the_readers_of_a_users_constructor(foreign: Place) -> None:
    foreign.save(STATE)
    mine = Recording()
    assert isinstance(mine, S3ReaderConstructorProtocol)
    assert not isinstance(mine, DCPS3ReaderConstructorProtocol)
    assert same_bits(foreign.load(emptied(STATE), reader_constructor=mine), STATE)
    assert "ckpt/__0_0.distcp" in mine.opened


def test_a_constructor_that_satisfies_the_dcp_protocol_is_told_the_ranges(local: Place) -> None:
    local.save(STATE)
    mine = RecordingRanges()
    assert isinstance(mine, DCPS3ReaderConstructorProtocol)
    assert same_bits(local.load(emptied(STATE), reader_constructor=mine), STATE)
    assert mine.told == [(3, local.uri("ckpt"))]
    assert "ckpt/__0_0.distcp" in mine.opened


@pytest.mark.parametrize("gap", [0, 1000, float("inf")])
def test_the_default_constructor_with_any_gap(local: Place, gap: float) -> None:
    local.save(STATE)
    made = S3ReaderConstructor.dcp_optimized(max_gap_size=gap)
    assert same_bits(local.load(emptied(STATE), reader_constructor=made), STATE)


def test_each_load_begins_with_another_object(
    local: Place, local_endpoint: LocalEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that ranks that load the same ones do not go through them in step; and each fetches no more than before."""
    state = {name: torch.randn(100) for name in "abc"}
    local.save(state, single_file_per_rank=False)
    begun: list[str] = []
    for turn in (0.0, 0.4, 0.7):
        monkeypatch.setattr(storage_reader._RANDOM, "random", lambda turn=turn: turn)
        local_endpoint.reset_stats()
        assert same_bits(local.load(emptied(state), max_connections=1), state)
        fetched = [record.key for record in local_endpoint.requests() if record.key.endswith(".distcp")]
        assert len(fetched) == len(set(fetched)) == 3
        begun.append(fetched[0])
    assert begun == sorted(set(begun))
    assert len(begun) == 3


def test_a_path_object(local: Place) -> None:
    local.save(STATE)
    region, settings = local.server.region, local.settings
    reader = S3StorageReader(region, Path(local.uri("ckpt")), **settings)
    assert same_bits(load(emptied(STATE), reader), STATE)


def load_fails(reader: S3StorageReader) -> BaseException:
    with pytest.raises(CheckpointException) as caught:
        load(emptied(STATE), reader)
    error = failure(caught.value)
    assert isinstance(error, AiockptError)
    return error


def test_no_checkpoint(foreign: Place) -> None:
    error = load_fails(foreign.reader("nothing/here"))
    assert isinstance(error, NotFound)
    assert isinstance(error, FileNotFoundError)
    assert foreign.uri("nothing/here") in str(error)
    assert "no complete checkpoint" in str(error)


def test_no_uri(local: Place) -> None:
    reader = S3StorageReader(local.server.region, "bucket/ckpt", **local.settings)
    with pytest.raises(CheckpointException) as caught:
        load(emptied(STATE), reader)
    error = failure(caught.value)
    assert isinstance(error, ValueError)
    assert "Only s3:// URIs are supported, got 'bucket/ckpt/.metadata'" in str(error)


def test_no_bucket(foreign: Place) -> None:
    missing = Place(foreign.server, "no-such-bucket-anywhere")
    error = load_fails(missing.reader())
    assert isinstance(error, S3Exception)
    assert "no-such-bucket-anywhere" in str(error)


def test_wrong_credentials(foreign: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    if not foreign.server.checks_signature:
        pytest.skip("this server takes any")
    foreign.save(STATE)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    error = load_fails(foreign.reader(max_attempts=3, connect_timeout_s=5.0))
    assert isinstance(error, AccessDenied)
    assert isinstance(error, PermissionError)
    assert foreign.uri("ckpt") in str(error)


def test_nobody_there(free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    url = f"http://127.0.0.1:{free_port}"
    reader = S3StorageReader("us-east-1", "s3://bucket/x", endpoint_url=url, max_attempts=2, backoff_base_s=0.01)
    error = load_fails(reader)
    assert isinstance(error, TransportError)
    assert "s3://bucket/x" in str(error)


def test_a_service_that_does_not_answer_is_not_waited_for_twice(local: Place, local_endpoint: LocalEndpoint) -> None:
    """Once it has had its retries, DCP's second try, for a rank's own metadata, is told the same at once."""
    local.save(STATE)
    local_endpoint.reset_stats()
    local_endpoint.add_fault(Fault(FaultKind.ERROR, "GetObject", count=None, status=500, code="InternalError"))
    with pytest.raises(CheckpointException) as caught:
        local.load(emptied(STATE), max_attempts=3, backoff_base_s=0.001)
    assert isinstance(failure(caught.value), S3Exception)
    assert local_endpoint.stats().requests["GetObject"] == 3


def test_a_reader_that_has_failed_works_when_the_service_does(local: Place, local_endpoint: LocalEndpoint) -> None:
    local.save(STATE)
    reader = local.reader(max_attempts=1)
    for _ in range(2):
        local_endpoint.add_fault(Fault(FaultKind.ERROR, "GetObject", count=1, status=500, code="InternalError"))
        with pytest.raises(CheckpointException):
            load(emptied(STATE), reader)
        assert same_bits(load(emptied(STATE), reader), STATE)


def test_a_part_size_that_cannot_be(local: Place) -> None:
    error = load_fails(local.reader(part_size=1))
    assert isinstance(error, ValueError)
    assert "5 MiB" in str(error)


@pytest.mark.parametrize("path", ["/tmp/ckpt", "gs://bucket/x"])
def test_a_path_that_is_no_s3_uri(path: str) -> None:
    reader = S3StorageReader("us-east-1", path)
    with pytest.raises((CheckpointException, ValueError), match="Only s3:// URIs are supported"):
        load(emptied(STATE), reader)


def test_damaged_metadata(local: Place) -> None:
    local.save(STATE)
    local.put("ckpt/.metadata", local.get("ckpt/.metadata")[:-20])
    error = load_fails(local.reader())
    assert isinstance(error, MetadataError)
    assert local.uri("ckpt/.metadata") in str(error)


class Evil:
    def __reduce__(self) -> Any:
        import os

        return os.system, ("true",)


def test_metadata_that_runs_code_is_refused_by_name(local: Place) -> None:
    import pickle

    local.put("ckpt/.metadata", pickle.dumps(Evil()))
    error = load_fails(local.reader())
    assert isinstance(error, MetadataError)
    assert "system" in str(error)


class MyPlannerData:
    def __init__(self) -> None:
        self.note = "x"


def test_types_that_the_user_allows(local: Place) -> None:
    import pickle

    local.save(STATE)
    metadata = local.reader().read_metadata()
    metadata.planner_data["mine"] = MyPlannerData()
    local.put("ckpt/.metadata", pickle.dumps(metadata))
    assert "MyPlannerData" in str(load_fails(local.reader()))
    assert same_bits(local.load(emptied(STATE), allowed_metadata_types=[MyPlannerData]), STATE)


def test_the_plan_is_sorted_within_each_object(local: Place) -> None:
    local.save(STATE)
    reader = local.reader()
    reader.set_up_storage_reader(reader.read_metadata(), is_coordinator=True)
    zero = torch.Size([0])
    items = [
        ReadItem(LoadItemType.TENSOR, index, zero, index, zero, zero)
        for index in (MetadataIndex("w", torch.Size([0, 0])), MetadataIndex("step"), MetadataIndex("v", zero))
    ]
    plan = LoadPlan(items)
    assert reader.prepare_local_plan(plan) is plan
    offsets = [reader.storage_data[item.storage_index].offset for item in plan.items]
    assert offsets == sorted(offsets)


def test_an_incomplete_plan_is_explained(local: Place) -> None:
    local.save(STATE)
    reader = local.reader()
    metadata = reader.read_metadata()
    assert metadata.storage_data
    metadata.storage_data.pop(MetadataIndex("v", torch.Size([0])))
    import pickle

    local.put("ckpt/.metadata", pickle.dumps(metadata))
    error = load_fails(local.reader())
    assert isinstance(error, MetadataError)
    assert "'v'" in str(error)


def test_two_servers_in_one_process(local: Place, moto: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines are kept by settings; credentials come from the environment of their first use."""
    local.save(STATE)
    other = Place(moto, make_bucket(moto))
    other.save(STATE)
    assert same_bits(other.load(emptied(STATE)), STATE)
    assert same_bits(local.load(emptied(STATE)), STATE)
