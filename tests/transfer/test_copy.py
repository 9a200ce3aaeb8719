from __future__ import annotations

from typing import Any

import pytest
import torch

from aiockpt.blocking.store import Store
from aiockpt.errors import NotFound, ObjectChanged
from aiockpt.model import ObjectId
from aiockpt.testing import LocalEndpoint
from aiockpt.transfer.contents import Contents, contents_of_bucket
from aiockpt.transfer.copy import copy
from dcp.checkpoints import Place, emptied, random_tensor, same_bits
from servers.base import make_bucket

STATE: dict[str, Any] = {"large": random_tensor((3, 100_000), torch.float32, 1), "step": 3}


@pytest.fixture
def contents(local: Place, store: Store) -> Contents:
    local.save(STATE, thread_count=2)
    return store.run(lambda engine: contents_of_bucket(engine, ObjectId(local.bucket, "ckpt")))


def run(store: Store, place: Place, contents: Contents, target: ObjectId) -> int:
    told: list[int] = []
    source = ObjectId(place.bucket, "ckpt")
    store.run(lambda engine: copy(engine, source, contents, target, told.append))
    return sum(told)


def test_to_another_bucket_without_the_bytes_coming_here(
    local: Place, store: Store, contents: Contents, local_endpoint: LocalEndpoint
) -> None:
    other = Place(local.server, make_bucket(local.server))
    local_endpoint.reset_stats()
    assert run(store, local, contents, ObjectId(other.bucket, "a/b")) == contents.nbytes
    seen = local_endpoint.stats()
    assert seen.requests["CopyObject"] == len(contents.data)
    assert seen.requests["PutObject"] == 1
    assert seen.body_bytes_in + seen.body_bytes_out < 64 * 1024 < contents.nbytes
    assert same_bits(other.load(emptied(STATE), "a/b"), STATE)


def test_a_source_that_is_saved_over_is_not_committed(local: Place, store: Store, contents: Contents) -> None:
    changed = Contents({".metadata": b"as it was before"}, contents.data)
    with pytest.raises(ObjectChanged, match="was saved over while it was copied"):
        run(store, local, changed, ObjectId(local.bucket, "there"))
    assert "there/.metadata" not in set(local.keys())


def test_an_object_that_goes_missing_is_named(local: Place, store: Store, contents: Contents) -> None:
    local.client.delete_object(Bucket=local.bucket, Key="ckpt/__0_0.distcp")
    with pytest.raises(NotFound, match=r"ckpt/__0_0\.distcp"):
        run(store, local, contents, ObjectId(local.bucket, "there"))
    assert "there/.metadata" not in set(local.keys())
