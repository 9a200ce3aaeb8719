from __future__ import annotations

import pytest
import torch

from aiockpt.blocking.store import Store
from aiockpt.model import ObjectId
from aiockpt.transfer import values
from aiockpt.transfer.metadata import read_metadata
from aiockpt.transfer.values import batches, load_bytes
from dcp.checkpoints import Place, random_tensor, raw_bytes
from dcp.test_ranks import launch
from dcp.workers.shards import SHAPES, tensor

STATE = {"w": random_tensor((300, 700), torch.float32), "e": torch.empty(0, 3), "b": torch.ones(3), "step": 4}


def test_bytes_of_tensors_and_objects(local: Place, store: Store) -> None:
    local.save(STATE)
    base = ObjectId(local.bucket, "ckpt")
    metadata = store.run(lambda engine: read_metadata(engine, base))[".metadata"]
    loaded = load_bytes(store, base, metadata, ["w", "e", "step"])
    assert loaded.keys() == {"w", "e", "step"}
    assert bytes(loaded["w"]) == raw_bytes(STATE["w"])  # type: ignore[arg-type]
    assert len(loaded["e"]) == 0
    assert len(loaded["step"]) > 0


def test_tensors_in_pieces_are_put_together(local: Place, store: Store) -> None:
    launch(local, 2, "save")
    base = ObjectId(local.bucket, "ckpt")
    metadata = store.run(lambda engine: read_metadata(engine, base))[".metadata"]
    loaded = load_bytes(store, base, metadata, list(SHAPES))
    for name in SHAPES:
        assert bytes(loaded[name]) == raw_bytes(tensor(name)), name


def test_batches(local: Place, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    local.save(STATE)
    metadata = store.run(lambda engine: read_metadata(engine, ObjectId(local.bucket, "ckpt")))[".metadata"]
    monkeypatch.setattr(values, "TOGETHER_BYTES", 12)
    assert list(batches(metadata, ["b", "step", "w", "e"])) == [["b", "step"], ["w"], ["e"]]
    assert list(batches(metadata, [])) == []
