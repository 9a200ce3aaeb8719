from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from aiockpt.blocking.store import Store
from aiockpt.errors import MetadataError, NotFound
from aiockpt.model import ObjectId
from aiockpt.transfer.metadata import read_local_metadata, read_metadata
from dcp.checkpoints import Place


def at(place: Place, name: str) -> ObjectId:
    return ObjectId(place.bucket, name)


def test_of_a_checkpoint(local: Place, store: Store, tmp_path: Path) -> None:
    local.save({"w": torch.ones(3)})
    found = store.run(lambda engine: read_metadata(engine, at(local, "ckpt")))
    assert list(found) == [".metadata"]
    assert set(found[".metadata"].state_dict_metadata) == {"w"}
    assert read_local_metadata(local.sync_down("ckpt", tmp_path)).keys() == {".metadata"}


def test_of_each_rank(local: Place, store: Store, tmp_path: Path) -> None:
    local.save({"w": torch.ones(3)}, "whole")
    data = local.get("whole/.metadata")
    for name in ("__0.metadata", "__11.metadata", "__junk.metadata"):
        local.put(f"ckpt/{name}", data)
    found = store.run(lambda engine: read_metadata(engine, at(local, "ckpt")))
    assert found.keys() == {"__0.metadata", "__11.metadata"}
    assert read_local_metadata(local.sync_down("ckpt", tmp_path)).keys() == found.keys()


def test_nothing_there_is_said(local: Place, store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"there is no complete checkpoint at s3://.*/ckpt"):
        store.run(lambda engine: read_metadata(engine, at(local, "ckpt")))
    with pytest.raises(NotFound, match="no complete checkpoint"):
        store.run(lambda engine: read_metadata(engine, ObjectId("no-such-bucket-of-ours", "ckpt")))
    with pytest.raises(FileNotFoundError, match="there is no complete checkpoint at"):
        read_local_metadata(tmp_path)


def test_a_pickle_that_would_run_code_is_refused(local: Place, store: Store) -> None:
    local.put("ckpt/.metadata", pickle.dumps(print))
    with pytest.raises(MetadataError, match=r"builtins\.print"):
        store.run(lambda engine: read_metadata(engine, at(local, "ckpt")))
