from __future__ import annotations

from pathlib import Path

import pytest

from aiockpt.testing.answers import Refusal
from aiockpt.testing.content import Content
from aiockpt.testing.folder import FolderStore
from aiockpt.testing.store import StoredObject, etag_of

KEYS = ["a", "b/c", "b//d", "../up", "x/./y", "50%", "dir/", "ü"]


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    store = FolderStore(tmp_path / "objects")
    store.create_bucket("bucket")
    return store


def put(store: FolderStore, key: str, data: bytes) -> None:
    content = Content.of(data)
    store.put("bucket", key, StoredObject(content, etag_of(content, parts=2), {"x-amz-meta-a": "b"}))


def data(store: FolderStore, key: str) -> bytes:
    stored = store.get("bucket", key)
    assert stored is not None
    return stored.content.to_bytes()


def test_every_key_is_a_file_below_its_bucket(store: FolderStore, tmp_path: Path) -> None:
    for key in KEYS:
        put(store, key, key.encode())
    assert store.keys("bucket") == sorted(KEYS, key=str.encode)
    assert [data(store, key) for key in KEYS] == [key.encode() for key in KEYS]
    assert (tmp_path / "objects/bucket/b/c").read_bytes() == b"b/c"
    assert [path.name for path in tmp_path.iterdir()] == ["objects"]
    for key in KEYS:
        store.delete("bucket", key)
    assert store.keys("bucket") == []
    store.delete_bucket("bucket")
    assert store.buckets() == []


def test_what_is_known_lasts_as_long_as_the_file(store: FolderStore, tmp_path: Path) -> None:
    put(store, "a", b"old")
    stored = store.get("bucket", "a")
    assert stored is not None
    assert (stored.etag[-3:], stored.headers) == ('-2"', {"x-amz-meta-a": "b"})
    (tmp_path / "objects/bucket/a").write_bytes(b"newer")
    changed = store.get("bucket", "a")
    assert changed is not None
    assert (changed.etag, changed.content.to_bytes()) == (etag_of(Content.of(b"newer")), b"newer")


def test_replacing_leaves_the_old_bytes_to_their_readers(store: FolderStore) -> None:
    put(store, "a", b"old")
    old = store.get("bucket", "a")
    put(store, "a", b"new")
    assert old is not None
    assert (old.content.to_bytes(), data(store, "a")) == (b"old", b"new")


def test_files_that_are_there_are_objects(store: FolderStore, tmp_path: Path) -> None:
    (tmp_path / "objects/bucket/sub").mkdir()
    (tmp_path / "objects/bucket/sub/empty").touch()
    assert store.keys("bucket") == ["sub/empty"]
    assert data(store, "sub/empty") == b""


def test_a_flipped_bit_keeps_the_etag(store: FolderStore) -> None:
    put(store, "a", b"abc")
    before = store.get("bucket", "a")
    store.flip_bit("bucket", "a", 1)
    after = store.get("bucket", "a")
    assert before is not None
    assert after is not None
    assert (after.etag, after.content.to_bytes()) == (before.etag, b"acc")


def test_refusals(store: FolderStore) -> None:
    put(store, "a", b"")
    with pytest.raises(Refusal, match="InvalidRequest"):
        put(store, "a/b", b"")
    with pytest.raises(Refusal, match="NoSuchBucket"):
        store.get("..", "a")
    with pytest.raises(Refusal, match="InvalidArgument"):
        store.create_bucket("../up")
    assert store.get("bucket", "a/b") is None
    assert store.keys("bucket") == ["a"]
