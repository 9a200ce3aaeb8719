from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from aiockpt.blocking.store import Store
from aiockpt.errors import MetadataError, NotFound, ShortRead
from aiockpt.model import ObjectId
from aiockpt.transfer.contents import check_path, contents_of_bucket, contents_of_folder
from dcp.checkpoints import Place

STATE = {"w": torch.arange(100.0), "step": 3}


def test_what_metadata_refer_to_and_nothing_else(local: Place, store: Store, tmp_path: Path) -> None:
    local.save(STATE)
    local.put("ckpt/__7_0.distcp", b"left by a killed writer")
    local.put("ckpt/notes.txt", b"a user's")
    there = store.run(partial(contents_of_bucket, base=ObjectId(local.bucket, "ckpt")))
    here = contents_of_folder(local.sync_down("ckpt", tmp_path))
    assert there.metadata == here.metadata == {".metadata": local.get("ckpt/.metadata")}
    nbytes = len(local.get("ckpt/__0_0.distcp"))
    assert [(file.path, file.nbytes) for file in there.data] == [("__0_0.distcp", nbytes)]
    assert [(file.path, file.nbytes, file.etag) for file in here.data] == [("__0_0.distcp", nbytes, "")]
    assert there.nbytes == nbytes
    assert there.data[0].etag


def test_what_is_missing_or_short_is_named(local: Place, store: Store, tmp_path: Path) -> None:
    local.save(STATE)
    data = local.get("ckpt/__0_0.distcp")
    local.put("ckpt/__0_0.distcp", data[:-1])
    with pytest.raises(ShortRead, match=r"ckpt/__0_0\.distcp has \d+ bytes, and the metadata refer to \d+"):
        store.run(partial(contents_of_bucket, base=ObjectId(local.bucket, "ckpt")))
    folder = local.sync_down("ckpt", tmp_path)
    (folder / "__0_0.distcp").unlink()
    with pytest.raises(MetadataError, match=r"refer to '__0_0.distcp', which is not there"):
        contents_of_folder(folder)


def test_no_checkpoint(local: Place, store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        store.run(partial(contents_of_bucket, base=ObjectId(local.bucket, "ckpt")))
    with pytest.raises(FileNotFoundError):
        contents_of_folder(tmp_path / "none")


@pytest.mark.parametrize("path", ["__0_0.distcp", "10/epoch_1/__3_0.distcp", "x y/ü.distcp"])
def test_paths_that_may_be(path: str) -> None:
    check_path(path, "here")


@pytest.mark.parametrize("path", ["", ".", "a//b", "./a", "a/", ".metadata", "a/__1.metadata"])
def test_paths_that_may_not_be(path: str) -> None:
    with pytest.raises(MetadataError, match="cannot be the path of a data file"):
        check_path(path, "here")
