from __future__ import annotations

import pytest

from aiockpt.testing.answers import Refusal
from aiockpt.testing.content import Content
from aiockpt.testing.store import MemoryStore, StoredObject, etag_of


def test_etags_tell_contents_and_parts_apart() -> None:
    contents = [Content.of(b"a"), Content.of(b"b"), Content.of(b"")]
    assert len({etag_of(content, parts) for content in contents for parts in (0, 1, 2)}) == 9


def test_objects_come_and_go() -> None:
    store = MemoryStore()
    store.create_bucket("b")
    stored = StoredObject(Content.of(b"abc"), '"tag"')
    for key in ("z", "a/b", "a"):
        store.put("b", key, stored)
    assert (store.buckets(), store.keys("b")) == (["b"], ["a", "a/b", "z"])
    assert store.get("b", "z") is stored
    store.flip_bit("b", "z", 2)
    flipped = store.get("b", "z")
    assert flipped is not None
    assert (flipped.etag, flipped.content.to_bytes()) == ('"tag"', b"abb")
    store.delete("b", "z")
    store.delete("b", "z")
    assert store.get("b", "z") is None
    store.delete_bucket("b")
    assert store.buckets() == []


def test_a_bucket_that_is_not_there() -> None:
    with pytest.raises(Refusal, match="NoSuchBucket"):
        MemoryStore().keys("b")
