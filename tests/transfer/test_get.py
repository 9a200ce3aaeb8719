from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader

from aiockpt.blocking.store import Store
from aiockpt.errors import ObjectChanged
from aiockpt.model import MiB, ObjectId
from aiockpt.transfer import get as getting
from aiockpt.transfer.contents import Contents, DataFile, contents_of_bucket
from aiockpt.transfer.get import get
from dcp.checkpoints import Place, emptied, load, random_tensor, same_bits

STATE: dict[str, Any] = {
    "large": random_tensor((3, 1_500_000), torch.float32, 1),
    "small": random_tensor((7,), torch.bfloat16, 2),
    "none": torch.empty(0, 3),
    "step": 3,
}


@pytest.fixture
def contents(local: Place, store: Store) -> Contents:
    local.save(STATE, thread_count=2)
    return store.run(partial(contents_of_bucket, base=ObjectId(local.bucket, "ckpt")))


def fetch(store: Store, place: Place, contents: Contents, folder: Path) -> int:
    """Fetch; returns the bytes that were reported."""
    told: list[int] = []
    get(store, ObjectId(place.bucket, "ckpt"), contents, folder, told.append)
    return sum(told)


def test_stock_dcp_reads_what_arrives(local: Place, store: Store, contents: Contents, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    assert fetch(store, local, contents, folder) == contents.nbytes
    assert sorted(path.name for path in folder.iterdir()) == [".metadata", "__0_0.distcp", "__0_1.distcp"]
    assert same_bits(load(emptied(STATE), FileSystemReader(folder)), STATE)


def open_files() -> set[str]:
    """The data objects that this process has open as files."""
    links: set[str] = set()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile, by another thread
            links.add(str(link.readlink()))
    return {link for link in links if link.endswith(".distcp")}


def test_few_blocks_serve_many_files(
    local: Place, store: Store, contents: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(getting, "BLOCK_BYTES", MiB)
    monkeypatch.setattr(getting, "BLOCKS", 2)
    fetch(store, local, contents, tmp_path)
    assert same_bits(load(emptied(STATE), FileSystemReader(tmp_path)), STATE)
    assert open_files() == set()


def test_empty_files_and_folders_below(local: Place, store: Store, tmp_path: Path) -> None:
    local.put("ckpt/a/b/__0_0.distcp", b"")
    local.put("ckpt/__1_0.distcp", b"12")
    contents = Contents({".metadata": b"m"}, [DataFile("__1_0.distcp", 2), DataFile("a/b/__0_0.distcp", 0)])
    fetch(store, local, contents, tmp_path)
    found = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {".metadata": b"m", "__1_0.distcp": b"12", "a/b/__0_0.distcp": b""}


def test_many_files_are_not_all_open_at_once(
    local: Place, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(getting, "FLUSHES_AHEAD", 3)
    monkeypatch.setattr(getting, "BLOCKS", 2)
    data = [DataFile(f"__{number}_0.distcp", 1) for number in range(30)]
    for file in data:
        local.put(f"ckpt/{file.path}", b"x")
    most = 0

    def look(_: int) -> None:
        nonlocal most
        most = max(most, len(open_files()))

    get(store, ObjectId(local.bucket, "ckpt"), Contents({".metadata": b"m"}, data), tmp_path, look)
    assert len(list(tmp_path.iterdir())) == 31
    assert 0 < most <= 3 + 2 + 1


def test_an_object_that_was_replaced_is_refused_and_nothing_stays(
    local: Place, store: Store, contents: Contents, tmp_path: Path
) -> None:
    local.put("ckpt/__0_1.distcp", bytes(contents.data[1].nbytes))
    with pytest.raises(ObjectChanged):
        fetch(store, local, contents, tmp_path / "new" / "folder")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over_and_others_files_stay(
    local: Place, store: Store, contents: Contents, tmp_path: Path
) -> None:
    (tmp_path / "__0_1.distcp").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        fetch(store, local, contents, tmp_path)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"mine"]


def test_a_full_disk_is_an_error_and_nothing_stays(
    local: Place, store: Store, contents: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        fetch(store, local, contents, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_at_the_end_leaves_no_metadata(
    local: Place, store: Store, contents: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"):
        fetch(store, local, contents, tmp_path)
    assert list(tmp_path.iterdir()) == []
