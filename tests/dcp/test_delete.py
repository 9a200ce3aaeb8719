from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.planner import LoadPlan

from aiockpt.blocking.store import Store
from aiockpt.config import S3ClientConfig
from aiockpt.dcp import HexPrefixStrategy
from aiockpt.dcp import delete as room
from aiockpt.dcp.delete import Contents, contents_of, delete_checkpoint
from aiockpt.dcp.opcodes import looked_through
from aiockpt.errors import MetadataError, NotFound, PreconditionFailed
from aiockpt.model import ObjectId
from aiockpt.testing import LocalEndpoint
from dcp.checkpoints import Place, emptied, failure, same_bits

STATE = {"w": torch.arange(100.0), "n": {"b": torch.ones(3, 5)}}


def deleted(place: Place, name: str = "ckpt", work: Callable[..., Any] = delete_checkpoint) -> Contents:
    store = Store(S3ClientConfig(**place.settings), place.server.region)
    found: Contents = store.run(lambda engine: work(engine, ObjectId(place.bucket, name)))
    return found


def test_elsewhere(foreign: Place) -> None:
    place = foreign
    for name in ("ckpt", "ckpt2"):
        place.save(STATE, name, single_file_per_rank=False, prefix_strategy=HexPrefixStrategy(epoch_num=1))
    others = ["ckpt/__0_9.distcp", "ckpt/notes.txt"]
    for key in others:
        place.put(key, b"x")
    there = [key for key in place.keys("ckpt/") if key not in others]
    planned = deleted(place, work=contents_of)
    assert [*(row.key for row in planned.metadata), *planned.data] == there
    assert deleted(place, "ckpt/") == planned
    assert place.keys("ckpt/") == others
    assert same_bits(place.load(emptied(STATE), "ckpt2"), STATE)
    with pytest.raises(CheckpointException) as caught:
        place.load(emptied(STATE))
    assert isinstance(failure(caught.value), NotFound)
    with pytest.raises(NotFound, match=f"no complete checkpoint at s3://{place.bucket}/ckpt; what killed"):
        deleted(place)


def test_metadata_go_first(local: Place, local_endpoint: LocalEndpoint) -> None:
    local.save(STATE, single_file_per_rank=False)
    for rank in range(2):
        local.put(f"ckpt/__{rank}.metadata", local.get("ckpt/.metadata"))
    local_endpoint.reset_stats()
    deleted(local)
    order = [record.key for record in local_endpoint.requests() if record.operation == "DeleteObject"]
    assert order[:3] == ["ckpt/__0.metadata", "ckpt/__1.metadata", "ckpt/.metadata"]
    assert sorted(order[3:]) == ["ckpt/__0_0.distcp", "ckpt/__0_1.distcp"]
    assert local.keys() == []


def test_a_checkpoint_at_the_root_of_a_bucket(local: Place) -> None:
    local.save(STATE, "")
    local.save(STATE, "ckpt")
    deleted(local, "")
    assert local.keys() == ["ckpt/.metadata", "ckpt/__0_0.distcp"]


def test_metadata_that_cannot_be_read(local: Place) -> None:
    local.save(STATE)
    local.put("ckpt/.metadata", b"damaged")
    with pytest.raises(MetadataError, match="damaged"):
        deleted(local)
    assert local.keys() == ["ckpt/.metadata", "ckpt/__0_0.distcp"]


def test_a_checkpoint_that_is_replaced_meanwhile_stays(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    local.save(STATE)
    other = {"w": torch.zeros(100), "n": {"b": torch.zeros(3, 5)}}
    real = room.contents_of

    async def contents_then_replaced(*arguments: Any) -> Contents:
        found = await real(*arguments)
        local.put("ckpt/__0_1.distcp", local.get("other/__0_0.distcp"))
        pickled = local.get("other/.metadata").replace(b"__0_0.distcp", b"__0_1.distcp")
        local.put("ckpt/.metadata", pickled[: looked_through(pickled).end])  # without its CRC32, which is of another
        return found

    local.save(other, "other")
    monkeypatch.setattr(room, "contents_of", contents_then_replaced)
    with pytest.raises(PreconditionFailed, match="replaced by another save"):
        deleted(local)
    assert same_bits(local.load(emptied(other)), other)


class DeletesFirst(DefaultLoadPlanner):
    """Has the checkpoint deleted when its metadata have been read, and nothing else."""

    def __init__(self, delete: Callable[[], object]) -> None:
        super().__init__()
        self._delete = delete

    def create_local_plan(self) -> LoadPlan:
        self._delete()
        return super().create_local_plan()


def test_a_load_under_way_finds_nothing_and_no_mixture(local: Place) -> None:
    local.save(STATE)
    with pytest.raises(CheckpointException) as caught:
        local.load(emptied(STATE), planner=DeletesFirst(lambda: deleted(local)))
    error = failure(caught.value)
    assert isinstance(error, NotFound)
    assert "__0_0.distcp" in str(error)
