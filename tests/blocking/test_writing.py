from __future__ import annotations

import array
import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, cast

import numpy as np
import pytest
import torch

from aiockpt.blocking.store import Store
from aiockpt.blocking.writing import S3Writer
from aiockpt.errors import AccessDenied, S3Exception
from aiockpt.model import MiB, ObjectId
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from blocking.conftest import one_or_two_threads

At = Callable[[str], ObjectId]

REFUSED = Fault(FaultKind.ERROR, count=None, status=403, code="AccessDenied")


def get(store: Store, source: ObjectId) -> bytes:
    return store.run(lambda engine: engine.get(source))


@pytest.mark.parametrize(
    "data",
    [
        b"bytes",
        bytearray(b"bytearray"),
        memoryview(b"memoryview"),
        memoryview(b"0123456789")[2:7],
        array.array("d", [1.0, 2.0]),
        memoryview(array.array("i", [1, 2, 3])),
        np.arange(6, dtype=np.int16).reshape(2, 3),
        np.zeros((0, 3)),
        b"",
    ],
)
def test_whatever_has_bytes_can_be_written(store: Store, at: At, data: Any) -> None:
    with S3Writer(store, at("a")) as writer:
        assert writer.write(b"<") == 1
        assert writer.write(data) == memoryview(data).nbytes
        assert writer.tell() == 1 + memoryview(data).nbytes
    assert get(store, at("a")) == b"<" + bytes(memoryview(data).tobytes())


def test_what_was_written_may_change_afterwards(store: Store, at: At) -> None:
    data = bytearray(b"x" * MiB)
    with S3Writer(store, at("a")) as writer:
        writer.write(data)
        data[:] = bytes(MiB)
    assert get(store, at("a")) == b"x" * MiB


def test_it_is_a_file_to_be_written(store: Store, at: At) -> None:
    with S3Writer(store, at("a/b")) as writer:
        assert (writer.readable(), writer.writable(), writer.seekable(), writer.closed) == (False, True, False, False)
        assert (writer.bucket, writer.key) == (at("").bucket, "a/b")
        writer.flush()
        with pytest.raises(OSError, match=r"read|seek"):
            writer.read()
        with pytest.raises(OSError, match="seek"):
            writer.seek(0)
        with pytest.raises(TypeError):
            writer.write("text")
    assert writer.closed


def test_the_object_appears_when_it_is_closed(store: Store, at: At) -> None:
    writer = S3Writer(store, at("a"))
    writer.write(bytes(6 * MiB))
    writer.flush()
    assert not store.exists(at("a"))
    writer.close()
    assert store.head(at("a")).size == 6 * MiB
    writer.close()
    writer.abort()
    assert store.exists(at("a"))


def test_an_empty_object(store: Store, at: At) -> None:
    S3Writer(store, at("a")).close()
    assert store.head(at("a")).size == 0


def test_a_bucket_is_no_object(store: Store, at: At, local_endpoint: LocalEndpoint) -> None:
    with pytest.raises(ValueError, match="key"):
        S3Writer(store, at(""))
    assert local_endpoint.stats().requests_total == 0


@pytest.mark.parametrize("end", ["close", "abort"])
def test_nothing_is_written_after_the_end(store: Store, at: At, end: str) -> None:
    writer = S3Writer(store, at("a"))
    getattr(writer, end)()
    with pytest.raises(ValueError, match="closed"):
        writer.write(b"1")
    assert store.exists(at("a")) == (end == "close")


def test_closing_from_several_threads(store: Store, at: At, local_endpoint: LocalEndpoint) -> None:
    writer = S3Writer(store, at("a"))
    writer.write(bytes(6 * MiB))
    start = threading.Barrier(3)

    def close() -> bool:
        start.wait(10)
        writer.close()
        return store.exists(at("a"))

    with ThreadPoolExecutor(3) as threads:
        assert all(close.result() for close in [threads.submit(close) for _ in range(3)])
    assert local_endpoint.stats().requests["CompleteMultipartUpload"] == 1


@pytest.mark.parametrize("nbytes", [0, 1000, 6 * MiB, 11 * MiB])
def test_an_exception_aborts(store: Store, at: At, local_endpoint: LocalEndpoint, nbytes: int) -> None:
    with pytest.raises(KeyError, match="mine"), S3Writer(store, at("a")) as writer:
        writer.write(bytes(nbytes))
        raise KeyError("mine")
    assert writer.closed
    assert not store.exists(at("a"))
    assert local_endpoint.stats().uploads_open == 0


def test_the_exception_is_the_one_raised_though_the_upload_fails_too(
    store: Store, at: At, local_endpoint: LocalEndpoint
) -> None:
    local_endpoint.add_fault(REFUSED)
    with pytest.raises(KeyError, match="mine"), S3Writer(store, at("a")) as writer:
        writer.write(bytes(11 * MiB))
        assert writer._upload._call.wait(20)
        raise KeyError("mine")


def test_a_failure_is_raised_while_writing(tight_store: Store, at: At, local_endpoint: LocalEndpoint) -> None:
    local_endpoint.add_fault(REFUSED)
    with pytest.raises(S3Exception) as caught, S3Writer(tight_store, at("a")) as writer:
        while True:
            writer.write(bytes(MiB))
    assert isinstance(caught.value, AccessDenied)
    assert isinstance(caught.value, PermissionError)


def test_a_failure_is_raised_on_closing(store: Store, at: At, local_endpoint: LocalEndpoint) -> None:
    local_endpoint.add_fault(Fault(FaultKind.ERROR, "CompleteMultipartUpload", status=403, code="AccessDenied"))
    writer = S3Writer(store, at("a"))
    writer.write(bytes(6 * MiB))
    with pytest.raises(AccessDenied):
        writer.close()
    writer.close()
    assert writer.closed
    assert not store.exists(at("a"))
    assert local_endpoint.stats().uploads_open == 0


@one_or_two_threads
def test_it_uploads_while_it_is_written_in_bounded_memory(
    tight_store: Store, at: At, local_endpoint: LocalEndpoint
) -> None:
    with tight_store.lease() as lease, S3Writer(tight_store, at("a")) as writer:
        lease.engine.budget.peak_bytes = 0
        for _ in range(32):
            writer.write(bytes(MiB))
        assert local_endpoint.stats().requests["UploadPart"] >= 2
    assert lease.engine.budget.peak_bytes <= 2 * MiB + 2 * 5 * MiB
    assert tight_store.head(at("a")).size == 32 * MiB


def test_several_streams_of_one_thread_and_a_small_budget(tight_store: Store, at: At) -> None:
    writers = [S3Writer(tight_store, at(str(number))) for number in range(4)]
    for _ in range(12):
        for writer in writers:
            writer.write(bytes(MiB))
    for writer in writers:
        writer.close()
    assert [tight_store.head(at(str(number))).size for number in range(4)] == [12 * MiB] * 4


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_saves_into_it(store: Store, at: At, zipped: bool) -> None:
    state = {"a": torch.arange(10.0), "b": "text"}
    with S3Writer(store, at("a")) as writer:
        torch.save(state, cast("IO[bytes]", writer), _use_new_zipfile_serialization=zipped)
    assert store.head(at("a")).size > 40


@pytest.mark.parametrize("nbytes", [0, 6 * MiB, 11 * MiB])
def test_one_that_is_never_closed_leaves_nothing(
    store: Store, at: At, local_endpoint: LocalEndpoint, nbytes: int
) -> None:
    S3Writer(store, at("a")).write(bytes(nbytes))
    gc.collect()
    assert not store.exists(at("a"))
    assert local_endpoint.stats().uploads_open == 0


@one_or_two_threads
def test_it_may_be_collected_on_the_loop_thread(store: Store, at: At, local_endpoint: LocalEndpoint) -> None:
    held = [S3Writer(store, at("a"))]
    held[0].write(bytes(6 * MiB))
    call = held[0]._upload._call
    with store.lease() as lease:
        lease.bridge.call_soon(held.clear)
    assert call.wait(20)
    assert not held
    assert not store.exists(at("a"))
    assert local_endpoint.stats().uploads_open == 0
