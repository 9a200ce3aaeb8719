from __future__ import annotations

import pytest
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
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem

from aiockpt.dcp.items import Catalogue, StoredItem
from aiockpt.errors import MetadataError
from aiockpt.model import ByteRange, ObjectId

BASE = ObjectId("bucket", "ckpt")
CHUNKS = [ChunkStorageMetadata(torch.Size([start, 0]), torch.Size([rows, 3])) for start, rows in ((0, 4), (4, 2))]
INDEXES = [MetadataIndex("w", chunk.offsets, number) for number, chunk in enumerate(CHUNKS)]


def catalogue() -> Catalogue:
    metadata = Metadata(
        {
            "w": TensorStorageMetadata(TensorProperties(torch.bfloat16), torch.Size([6, 3]), CHUNKS),
            "step": BytesStorageMetadata(),
        }
    )
    stored = {
        INDEXES[0]: _StorageInfo("a/__0_0.distcp", 10, 1600),
        INDEXES[1]: _StorageInfo("__1_0.distcp", 0, 12),
        MetadataIndex("step"): _StorageInfo("__1_0.distcp", 12, 5, ["stream.zstd"]),
    }
    return Catalogue(BASE, metadata, stored)


def only(catalogue: Catalogue, item: ReadItem) -> StoredItem:
    (stored,) = catalogue.items([item])
    return stored


def read(index: MetadataIndex, starts: tuple[int, ...], lengths: tuple[int, ...]) -> ReadItem:
    return ReadItem(LoadItemType.TENSOR, index, torch.Size(starts), index, torch.Size(starts), torch.Size(lengths))


def test_an_item_is_where_the_metadata_says_and_what_it_says() -> None:
    item = only(catalogue(), read(INDEXES[0], (0, 0), (4, 3)))
    assert item.source == ObjectId("bucket", "ckpt/a/__0_0.distcp")
    assert item.span == ByteRange(10, 1610)
    assert (item.dtype, tuple(item.shape), item.payload_nbytes) == (torch.bfloat16, (4, 3), 24)
    assert item.is_whole
    assert not item.is_bare
    assert str(item) == "'w' in s3://bucket/ckpt/a/__0_0.distcp, bytes 10-1610"


def test_each_chunk_has_its_own_shape_and_a_slice_is_not_whole() -> None:
    item = only(catalogue(), read(INDEXES[1], (1, 0), (1, 3)))
    assert tuple(item.shape) == (2, 3)
    assert item.is_bare
    assert not item.is_whole


@pytest.mark.parametrize("hint", [None, 0, 7, -1])
def test_the_offset_counts_not_the_hint(hint: int | None) -> None:
    index = MetadataIndex("w", torch.Size([4, 0]), hint)
    assert tuple(only(catalogue(), read(index, (0, 0), (2, 3))).shape) == (2, 3)


def test_serialized_objects() -> None:
    index, none = MetadataIndex("step"), torch.Size([0])
    item = only(catalogue(), ReadItem(LoadItemType.BYTE_IO, index, none, index, none, none))
    assert (item.dtype, item.span, list(item.transforms)) == (None, ByteRange(12, 17), ["stream.zstd"])


def test_metadata_of_older_torch_without_transforms() -> None:
    place = _StorageInfo("x", 0, 12)
    del place.__dict__["transform_descriptors"]
    tensors = {"w": TensorStorageMetadata(TensorProperties(torch.bfloat16), torch.Size([6, 3]), CHUNKS)}
    item = only(Catalogue(BASE, Metadata({**tensors}), {INDEXES[1]: place}), read(INDEXES[1], (0, 0), (2, 3)))
    assert not item.transforms


@pytest.mark.parametrize(
    ("index", "starts", "lengths"),
    [
        (MetadataIndex("unknown", torch.Size([0, 0])), (0, 0), (1, 1)),
        (MetadataIndex("w", torch.Size([5, 0])), (0, 0), (1, 1)),
        (INDEXES[1], (0, 0), (3, 3)),
        (INDEXES[1], (-1, 0), (1, 3)),
        (INDEXES[1], (0,), (2,)),
    ],
    ids=["no tensor", "no chunk", "too long", "before the start", "other dimensions"],
)
def test_what_does_not_fit_together_is_refused_by_name(
    index: MetadataIndex, starts: tuple[int, ...], lengths: tuple[int, ...]
) -> None:
    with pytest.raises(MetadataError, match=index.fqn) as caught:
        only(catalogue(), read(index, starts, lengths))
    assert BASE.uri in str(caught.value)


def test_items_come_by_object_and_offset_and_are_made_one_by_one() -> None:
    place = _StorageInfo
    places = {
        MetadataIndex("a"): place("two", 50, 1),
        MetadataIndex("b"): place("one", 9, 1),
        MetadataIndex("c"): place("two", 7, 1),
        MetadataIndex("d"): place("one", 3, 1),
    }
    none = torch.Size([])
    reads = [ReadItem(LoadItemType.BYTE_IO, index, none, index, none, none) for index in [*places, MetadataIndex("a")]]
    items = Catalogue(BASE, None, places).items(reads)
    assert iter(items) is items
    assert [item.read.storage_index.fqn for item in items] == ["d", "b", "c", "a", "a"]


@pytest.mark.parametrize(
    ("turn", "order"), [(0.0, "aabcc"), (0.33, "aabcc"), (0.34, "bccaa"), (0.67, "ccaab"), (0.999, "ccaab")]
)
def test_objects_may_be_read_from_another_one_on(turn: float, order: str) -> None:
    none = torch.Size([])
    places = {MetadataIndex(f"{path}{at}"): _StorageInfo(path, at, 1) for at, path in enumerate("cabca")}
    reads = [ReadItem(LoadItemType.BYTE_IO, index, none, index, none, none) for index in places]
    items = list(Catalogue(BASE, None, places).items(reads, turn))
    assert "".join(item.source.key[-1] for item in items) == order
    offsets = [[item.offset for item in items if item.source.key[-1] == path] for path in "abc"]
    assert offsets == [[1, 4], [2], [0, 3]]
    assert list(Catalogue(BASE, None, places).items([], turn)) == []
