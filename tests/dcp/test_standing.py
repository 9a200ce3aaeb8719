from __future__ import annotations

import torch

from aiockpt.blocking.store import Store
from aiockpt.config import S3ClientConfig
from aiockpt.dcp import HexPrefixStrategy
from aiockpt.dcp.remnants import Standing
from aiockpt.dcp.standing import metadata_at, read_standing
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from dcp.checkpoints import Place

STATE = {"w": torch.ones(3)}


def store(place: Place) -> Store:
    return Store(S3ClientConfig(**place.settings), place.server.region)


def test_metadata_directly_in_a_folder(foreign: Place) -> None:
    names = [".metadata", "__0.metadata", "__11.metadata", ".metadata.tmp"]
    for name in [*names, "x.metadata", "a/.metadata", ".metadata.d/x", "__0_0.distcp"]:
        foreign.put(f"ckpt/{name}", b"x")

    def found(folder: str, *, temporary: bool) -> list[str]:
        rows = store(foreign).run(lambda engine: metadata_at(engine, foreign.bucket, folder, temporary=temporary))
        return [row.key for row in rows]

    assert found("ckpt/", temporary=True) == sorted(f"ckpt/{name}" for name in names)
    assert found("ckpt/", temporary=False) == sorted(f"ckpt/{name}" for name in names[:3])
    assert found("ckpt/a/", temporary=False) == ["ckpt/a/.metadata"]
    assert found("", temporary=True) == []


def test_what_they_refer_to(local: Place, local_endpoint: LocalEndpoint) -> None:
    local.save(STATE, "a", prefix_strategy=HexPrefixStrategy())
    local.put(".metadata", local.get("a/.metadata"))
    local.put("b/.metadata", b"damaged")
    keys = ["a/.metadata", "gone/.metadata", "b/.metadata", ".metadata"]
    bucket = local.bucket
    top, first, damaged = store(local).run(lambda engine: read_standing(engine, bucket, keys))
    assert top == Standing(".metadata", frozenset({"0000000000/__0_0.distcp"}))
    assert first == Standing("a/.metadata", frozenset({"a/0000000000/__0_0.distcp"}))
    assert (damaged.key, damaged.data) == ("b/.metadata", None)
    assert "damaged" in damaged.trouble
    local_endpoint.add_fault(Fault(FaultKind.ERROR, "GetObject", status=403, code="AccessDenied"))
    (hidden,) = store(local).run(lambda engine: read_standing(engine, bucket, ["a/.metadata"]))
    assert hidden.data is None
    assert "AccessDenied" in hidden.trouble
