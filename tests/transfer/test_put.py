from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemWriter

from aiockpt.blocking.store import Store
from aiockpt.errors import PreconditionFailed, ServiceError, ShortRead
from aiockpt.model import ObjectId
from aiockpt.testing import LocalEndpoint
from aiockpt.testing.faults import Fault, FaultKind
from aiockpt.transfer.contents import Contents, contents_of_bucket, contents_of_folder
from aiockpt.transfer.put import Bucket, Folder, put
from dcp.checkpoints import Place, emptied, random_tensor, same_bits, save

STATE: dict[str, Any] = {
    "large": random_tensor((3, 1_500_000), torch.float32, 1),
    "small": random_tensor((7,), torch.bfloat16, 2),
    "none": torch.empty(0, 3),
    "step": 3,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(STATE, FileSystemWriter(tmp_path, thread_count=2, sync_files=False))
    return tmp_path


def test_our_reader_reads_what_stock_dcp_wrote(local: Place, store: Store, folder: Path) -> None:
    contents = contents_of_folder(folder)
    told: list[int] = []
    put(Folder(folder), contents, store, ObjectId(local.bucket, "ckpt"), told.append)
    assert sum(told) == contents.nbytes
    assert same_bits(local.load(emptied(STATE)), STATE)
    assert local.uploads() == []


def test_from_another_store(local: Place, store: Store) -> None:
    local.save(STATE)
    source = ObjectId(local.bucket, "ckpt")
    contents = store.run(lambda engine: contents_of_bucket(engine, source))
    put(Bucket(store, source), contents, store, ObjectId(local.bucket, "there"), lambda _: None)
    assert same_bits(local.load(emptied(STATE), "there"), STATE)


def test_metadata_of_another_writer_stay(local: Place, store: Store, folder: Path) -> None:
    local.put("ckpt/.metadata", b"another's")
    with pytest.raises(PreconditionFailed):
        put(Folder(folder), contents_of_folder(folder), store, ObjectId(local.bucket, "ckpt"), lambda _: None)
    assert local.get("ckpt/.metadata") == b"another's"


def test_a_failure_leaves_no_upload_and_no_metadata(
    local: Place, store: Store, local_endpoint: LocalEndpoint, folder: Path
) -> None:
    local_endpoint.add_fault(Fault(FaultKind.ERROR, "UploadPart", status=403, code="AccessDenied"))
    with pytest.raises(ServiceError):
        put(Folder(folder), contents_of_folder(folder), store, ObjectId(local.bucket, "ckpt"), lambda _: None)
    assert "ckpt/.metadata" not in set(local.keys())
    assert local.uploads() == []


def test_a_file_that_becomes_shorter_is_an_error(local: Place, store: Store, folder: Path) -> None:
    contents = contents_of_folder(folder)
    first = contents.data[0]
    shorter = Contents(contents.metadata, contents.data)
    (folder / first.path).write_bytes(b"x" * (first.nbytes - 1))
    with pytest.raises(ShortRead, match="has become shorter"):
        put(Folder(folder), shorter, store, ObjectId(local.bucket, "ckpt"), lambda _: None)
    assert ".metadata" not in "".join(local.keys())
    assert local.uploads() == []
