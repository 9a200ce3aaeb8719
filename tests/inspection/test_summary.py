from __future__ import annotations

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from aiockpt.inspection.summary import Blob, Chunk, Place, summarize


def tensor(shape: tuple[int, ...], *chunks: tuple[tuple[int, ...], tuple[int, ...]]) -> TensorStorageMetadata:
    listed = [ChunkStorageMetadata(torch.Size(at), torch.Size(sizes)) for at, sizes in chunks]
    return TensorStorageMetadata(TensorProperties(dtype=torch.bfloat16), torch.Size(shape), listed)


HALF = Metadata(
    {"w": tensor((4, 3), ((0, 0), (2, 3)), ((2, 0), (2, 3))), "step": BytesStorageMetadata()},
    storage_data={
        MetadataIndex("w", (0, 0)): _StorageInfo("__0_0.distcp", 0, 1500),
        MetadataIndex("step"): _StorageInfo("__0_0.distcp", 1500, 40),
    },
)
OTHER_HALF = Metadata(
    {"w": tensor((4, 3), ((0, 0), (2, 3)), ((2, 0), (2, 3))), "b": tensor((), ((), ()))},
    storage_data={MetadataIndex("w", (2, 0)): _StorageInfo("x/__1_0.distcp", 8, 1492)},
)


def test_a_checkpoint() -> None:
    summary = summarize([HALF])
    (w,) = summary.tensors
    assert (w.name, w.dtype, w.shape, w.elements, w.nbytes) == ("w", "bfloat16", (4, 3), 12, 24)
    assert w.chunks == (
        Chunk((0, 0), (2, 3), Place("__0_0.distcp", 0, 1500)),
        Chunk((2, 0), (2, 3), None),
    )
    assert summary.blobs == (Blob("step", Place("__0_0.distcp", 1500, 1540)),)
    assert (summary.stored_nbytes, summary.objects, summary.ranks) == (1540, ["__0_0.distcp"], 1)


def test_the_metadata_of_all_ranks_together() -> None:
    summary = summarize([HALF, OTHER_HALF])
    b, w = summary.tensors
    assert (b.name, b.shape, b.nbytes, b.objects) == ("b", (), 2, [])
    assert [chunk.place for chunk in w.chunks] == [Place("__0_0.distcp", 0, 1500), Place("x/__1_0.distcp", 8, 1500)]
    assert (summary.elements, summary.nbytes, summary.ranks) == (13, 26, 2)


def test_nothing() -> None:
    summary = summarize([Metadata({}, storage_data=None)])
    assert (summary.tensors, summary.nbytes, summary.stored_nbytes, summary.ranks) == ((), 0, 0, 0)
