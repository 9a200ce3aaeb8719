from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aiockpt.blocking.store import Store
from aiockpt.errors import PreconditionFailed
from aiockpt.model import ObjectId
from aiockpt.transfer.contents import Contents, DataFile
from aiockpt.transfer.target import prepare_bucket, prepare_folder
from dcp.checkpoints import Place

CONTENTS = Contents({".metadata": b""}, [DataFile("__0_0.distcp", 1), DataFile("a/__1_0.distcp", 1)])


def prepare(store: Store, place: Place, *, overwrite: bool) -> None:
    base = ObjectId(place.bucket, "ckpt")
    store.run(lambda engine: prepare_bucket(engine, base, CONTENTS, overwrite=overwrite))


@pytest.mark.parametrize("name", [".metadata", "__3.metadata", "a/__1_0.distcp"])
def test_what_is_in_the_way(local: Place, store: Store, tmp_path: Path, name: str) -> None:
    local.put(f"ckpt/{name}", b"x")
    local.put("ckpt/log.txt", b"x")
    with pytest.raises(PreconditionFailed, match=f"/ckpt holds {name} already: pass --overwrite"):
        prepare(store, local, overwrite=False)
    folder = local.sync_down("ckpt", tmp_path)
    with pytest.raises(FileExistsError, match=f"ckpt holds {name} already: pass --overwrite"):
        prepare_folder(folder, CONTENTS, overwrite=False)
    assert local.keys() == [f"ckpt/{name}", "ckpt/log.txt"] or local.keys() == ["ckpt/log.txt", f"ckpt/{name}"]

    prepare(store, local, overwrite=True)
    prepare_folder(folder, CONTENTS, overwrite=True)
    assert local.keys() == ["ckpt/log.txt"]
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["log.txt"]


def test_a_free_place(local: Place, store: Store, tmp_path: Path) -> None:
    local.put("ckpt-2/.metadata", b"another's")
    prepare(store, local, overwrite=False)
    prepare_folder(tmp_path / "new", CONTENTS, overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_all_of_an_old_checkpoint_goes(local: Place, store: Store, tmp_path: Path) -> None:
    local.save({"w": torch.ones(3)}, thread_count=1)
    local.save({"w": torch.ones(3)}, overwrite=True)
    assert local.keys() == ["ckpt/.metadata", "ckpt/__0_1.distcp"]
    folder = local.sync_down("ckpt", tmp_path)
    prepare(store, local, overwrite=True)
    prepare_folder(folder, CONTENTS, overwrite=True)
    assert local.keys() == []
    assert list(folder.iterdir()) == []
