from __future__ import annotations

import os
import pickle
import random
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemBase

from aiockpt import S3Exception, S3ReaderConstructor
from aiockpt.dcp import S3FileSystem
from aiockpt.dcp.file_system import DELETE_TRIES
from aiockpt.errors import AccessDenied, NotFound, TransportError
from aiockpt.s3reader import RangedS3Reader, SequentialS3Reader
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from dcp.checkpoints import Place

REGION = "nowhere-in-particular"

AWKWARD_KEYS = [
    "with space",
    "plus+plus",
    "per%cent",
    "already%20quoted",
    "ü-ö-漢",
    "a&b=c?d#e",
    "quo\"te's",
    "semi;colon:at@",
    "tilde~(paren)!*",
    "deep/er/est",
]


@pytest.fixture
def offline() -> S3FileSystem:
    """One that never speaks to anybody."""
    return S3FileSystem(REGION, endpoint_url="http://127.0.0.1:1")


def test_it_is_dcps_file_system(offline: S3FileSystem) -> None:
    assert isinstance(offline, FileSystemBase)


@pytest.mark.parametrize("key", AWKWARD_KEYS)
def test_keys_of_any_kind_are_written_read_renamed_and_removed(foreign: Place, key: str) -> None:
    fs = foreign.fs()
    old, new = foreign.uri(f"from/{key}"), foreign.uri(f"to/{key}.new")
    with fs.create_stream(old, "wb") as stream:
        stream.write(key.encode())
    assert foreign.keys() == [f"from/{key}"]
    fs.rename(old, new)
    assert foreign.keys() == [f"to/{key}.new"]
    assert fs.exists(new)
    assert not fs.exists(old)
    with fs.create_stream(new, "rb") as stream:
        assert stream.read() == key.encode()
    fs.rm_file(new)
    assert not fs.exists(new)
    fs.rm_file(new)


def test_rename_replaces(foreign: Place) -> None:
    foreign.put("a", b"new")
    foreign.put("b", b"old")
    foreign.fs().rename(foreign.uri("a"), foreign.uri("b"))
    assert foreign.keys() == ["b"]
    assert foreign.get("b") == b"new"


def test_rename_across_buckets(offline: S3FileSystem) -> None:
    with pytest.raises(ValueError, match="Source and destination buckets cannot be different"):
        offline.rename("s3://one/a", "s3://two/a")


def test_rename_of_what_is_not_there(foreign: Place) -> None:
    with pytest.raises(NotFound):
        foreign.fs().rename(foreign.uri("nothing"), foreign.uri("new"))
    assert foreign.keys() == []


@pytest.mark.parametrize(("failures", "gone"), [(DELETE_TRIES - 1, True), (DELETE_TRIES, False)])
def test_rename_tries_three_times_to_delete(
    local: Place, local_endpoint: LocalEndpoint, failures: int, gone: bool
) -> None:
    local.put("a", b"x")
    fault = Fault(FaultKind.ERROR, operation="DeleteObject", count=failures, status=403, code="AccessDenied")
    local_endpoint.add_fault(fault)
    if gone:
        local.fs().rename(local.uri("a"), local.uri("b"))
    else:
        with pytest.raises(S3Exception):
            local.fs().rename(local.uri("a"), local.uri("b"))
    assert local.keys() == (["b"] if gone else ["a", "b"])


@pytest.mark.parametrize("mode", ["r", "w", "ab", "rb+", ""])
def test_other_modes(offline: S3FileSystem, mode: str) -> None:
    with pytest.raises(ValueError) as caught, offline.create_stream("s3://b/k", mode):  # noqa: PT011  # whole below
        pass
    expected = f"Invalid mode={mode!r} mode argument: create_stream only supports rb (read mode) & wb (write mode)"
    assert str(caught.value) == expected


@pytest.mark.parametrize("mode", ["rb", "wb"])
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/tmp/x", "Only s3:// URIs are supported"),
        ("gs://bucket/x", "Only s3:// URIs are supported"),
        ("", "Only s3:// URIs are supported"),
        ("s3://", "Bucket name must be non-empty"),
        ("s3:///key", "Bucket name must be non-empty"),
    ],
)
def test_paths_that_are_no_s3_uris(offline: S3FileSystem, path: str, message: str, mode: str) -> None:
    with pytest.raises(ValueError, match=message), offline.create_stream(path, mode):
        pass
    for call in (offline.exists, offline.rm_file):
        with pytest.raises(ValueError, match=message):
            call(path)


@pytest.mark.parametrize("size", [0, 1, 100_000, 11 << 20])
def test_what_is_written_is_read(foreign: Place, size: int) -> None:
    data = random.Random(size).randbytes(size)
    fs = foreign.fs(part_size=5 << 20)
    with fs.create_stream(foreign.uri("x"), "wb") as stream:
        step = max(1, size // 3)
        for start in range(0, size, step):
            piece = memoryview(data)[start : start + step]
            assert stream.write(piece) == len(piece)
        assert stream.tell() == size
    assert foreign.get("x") == data
    with fs.create_stream(foreign.uri("x"), "rb") as stream:
        assert stream.read() == data
        stream.seek(size // 2)
        assert stream.read(10) == data[size // 2 : size // 2 + 10]


class Interrupted(BaseException):
    """Not even an Exception, as KeyboardInterrupt."""


@pytest.mark.parametrize("written", [0, 100, 11 << 20])
@pytest.mark.parametrize("kind", [ZeroDivisionError, Interrupted])
def test_an_exception_inside_a_write_stream_leaves_nothing(
    local: Place, local_endpoint: LocalEndpoint, written: int, kind: type[BaseException]
) -> None:
    with pytest.raises(kind, match="mine"), local.fs(part_size=5 << 20).create_stream(local.uri("x"), "wb") as stream:
        stream.write(bytes(written))
        raise kind("mine")
    assert local.keys() == []
    assert local.uploads() == []


def test_write_streams_upload_while_they_are_written(local: Place, local_endpoint: LocalEndpoint) -> None:
    block = bytes(1 << 20)
    with local.fs(part_size=5 << 20, memory_bytes=16 << 20).create_stream(local.uri("x"), "wb") as stream:
        for _ in range(48):
            stream.write(block)
        assert local_endpoint.stats().body_bytes_in >= 16 << 20  # what the memory bound does not hold has left
        assert local.keys() == []
    assert len(local.get("x")) == 48 << 20


def test_a_failed_write_is_raised(local: Place, local_endpoint: LocalEndpoint) -> None:
    local_endpoint.add_fault(Fault(FaultKind.ERROR, operation="PutObject", count=None, status=403, code="AccessDenied"))
    with pytest.raises(AccessDenied), local.fs().create_stream(local.uri("x"), "wb") as stream:
        stream.write(b"x")
    assert local.keys() == []


@pytest.mark.parametrize(
    ("path", "suffix", "expected"),
    [
        ("s3://b/a", "c", "s3://b/a/c"),
        ("s3://b/a/", "c", "s3://b/a/c"),
        ("s3://b/a", "/c", "s3://b/a/c"),
        ("s3://b", ".metadata", "s3://b/.metadata"),
        ("s3://b/a", "c/d", "s3://b/a/c/d"),
        (PurePosixPath("s3://b/a"), "c", "s3://b/a/c"),
        (Path("s3://b/a"), "c", "s3://b/a/c"),
    ],
)
def test_concat_path(offline: S3FileSystem, path: str | os.PathLike[str], suffix: str, expected: str) -> None:
    assert offline.concat_path(path, suffix) == expected


@pytest.mark.parametrize("path", ["s3://b/a", Path("x"), "anything"])
def test_init_path_gives_back_what_it_gets(offline: S3FileSystem, path: Any) -> None:
    assert offline.init_path(path) is path


def test_mkdir_does_nothing(offline: S3FileSystem) -> None:
    offline.mkdir("s3://b/a")


@pytest.mark.parametrize(
    ("checkpoint_id", "valid"),
    [
        ("s3://bucket", True),
        ("s3://bucket/", True),
        ("s3://bucket/key", True),
        (Path("/somewhere"), True),
        (Path("s3://bucket/key"), True),
        ("s3://", False),
        ("s3:///key", False),
        ("/somewhere", False),
        ("https://bucket/key", False),
        ("", False),
        ("S3://bucket/key", False),
        (None, False),
        (7, False),
    ],
)
def test_validate_checkpoint_id(checkpoint_id: Any, valid: bool) -> None:
    assert S3FileSystem.validate_checkpoint_id(checkpoint_id) is valid


def test_exists_raises_what_is_not_about_the_object(local: Place, local_endpoint: LocalEndpoint) -> None:
    fs = local.fs()
    assert not fs.exists(local.uri("x"))
    local_endpoint.add_fault(Fault(FaultKind.ERROR, operation="HeadObject", status=403, code="AccessDenied"))
    with pytest.raises(AccessDenied):
        fs.exists(local.uri("x"))
    with pytest.raises(PermissionError):
        local_endpoint.add_fault(Fault(FaultKind.ERROR, operation="DeleteObject", status=403, code="AccessDenied"))
        fs.rm_file(local.uri("x"))


def test_reading_what_is_not_there(foreign: Place) -> None:
    with pytest.raises(FileNotFoundError) as caught, foreign.fs().create_stream(foreign.uri("x"), "rb") as stream:
        stream.read()
    assert isinstance(caught.value, S3Exception)
    assert foreign.uri("x") in str(caught.value)


def test_ls_lists_one_level(foreign: Place) -> None:
    for key in ("ck/.metadata", "ck/__0_0.distcp", "ck/sub/x", "ck/sub/y", "ckother", "top"):
        foreign.put(key, b"")
    fs = foreign.fs()
    below = [foreign.uri(key) for key in ("ck/.metadata", "ck/__0_0.distcp", "ck/sub/")]
    assert sorted(fs.ls(foreign.uri("ck"))) == below
    assert sorted(fs.ls(foreign.uri("ck/"))) == below
    assert sorted(fs.ls(foreign.uri())) == [foreign.uri(key) for key in ("ck/", "ckother", "top")]
    assert fs.ls(foreign.uri("nothing")) == []


def test_the_reader_constructor_makes_the_readers(local: Place) -> None:
    local.put("x", b"abc")
    with local.fs().create_stream(local.uri("x"), "rb") as stream:
        assert isinstance(stream, SequentialS3Reader)
    ranged = S3ReaderConstructor.range_based(buffer_size=2)
    with local.fs(reader_constructor=ranged).create_stream(local.uri("x"), "rb") as stream:
        assert isinstance(stream, RangedS3Reader)
        assert stream.read() == b"abc"


def test_it_pickles_and_is_shared(local: Place) -> None:
    fs = local.fs()
    again = pickle.loads(pickle.dumps(fs))
    with again.create_stream(local.uri("x"), "wb") as stream:
        stream.write(b"abc")
    shared = S3FileSystem(REGION, s3_client=fs.store)
    assert shared.exists(local.uri("x"))


def test_torch_saves_to_and_loads_from_its_streams(local: Place) -> None:
    tensor = torch.randn(300, 400)
    fs = local.fs()
    with fs.create_stream(local.uri("x.pt"), "wb") as stream:
        torch.save({"x": tensor}, cast("IO[bytes]", stream))
    with fs.create_stream(local.uri("x.pt"), "rb") as stream:
        assert torch.equal(torch.load(cast("IO[bytes]", stream))["x"], tensor)


def test_nobody_there(free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    url = f"http://127.0.0.1:{free_port}"
    fs = S3FileSystem("us-east-1", endpoint_url=url, max_attempts=2, backoff_base_s=0.01)
    with pytest.raises(TransportError, match="bucket"):
        fs.exists("s3://bucket/x")
