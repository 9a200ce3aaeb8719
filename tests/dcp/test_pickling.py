"""What is pickled is what every unpickler gets back, however odd; and parts are shared."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

import aiockpt.dcp.pickling as room
from aiockpt.dcp.pickling import pickled
from aiockpt.dcp.proof import ATTRIBUTE, attach
from aiockpt.dcp.unpickling import SafeUnpickler

UNPICKLERS: dict[str, Callable[[bytes], Any]] = {
    "C": pickle.loads,
    "Python": lambda data: pickle._Unpickler(io.BytesIO(data)).load(),  # has no public name
    "ours": lambda data: SafeUnpickler(data, "here", (OtherTensor, OtherChunk)).load(),
}


@dataclass
class OtherTensor(TensorStorageMetadata):
    """As a planner of somebody else's has them."""

    note: str = "mine"


@dataclass
class OtherChunk(ChunkStorageMetadata):
    note: str = "mine"


def told(value: object) -> object:
    """All that there is to a value: ``==`` of an index leaves out its number, and of a place its proof."""
    if isinstance(value, dict):
        return [(told(key), told(entry)) for key, entry in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [told(entry) for entry in value]
    if is_dataclass(value):
        names = [field.name for field in fields(value)]
        return type(value), [told(getattr(value, name)) for name in names], getattr(value, ATTRIBUTE, None)
    return value


NAMES = st.text(max_size=300) | st.sampled_from(
    ["", "%b", "100 %", "fqn", "offset", "state_dict_metadata", "__0_0.distcp", "\x00", "ä" * 200, "x" * 70_000]
)
SIZES = st.lists(st.integers(0, 1 << 40), max_size=4).map(torch.Size)
NUMBERS = st.integers(0, 1 << 62) | st.sampled_from([(1 << bits) - at for bits in (8, 16, 31, 32, 40) for at in (0, 1)])
CHUNKS = st.builds(ChunkStorageMetadata, SIZES, SIZES) | st.builds(OtherChunk, SIZES, SIZES)
PROPERTIES = st.builds(
    TensorProperties,
    st.sampled_from([torch.float32, torch.bfloat16, torch.bool]),
    requires_grad=st.booleans(),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
TENSORS = (
    st.builds(BytesStorageMetadata)
    | st.builds(TensorStorageMetadata, PROPERTIES, SIZES, st.lists(CHUNKS, max_size=3))
    | st.builds(OtherTensor, PROPERTIES, SIZES, st.lists(CHUNKS, max_size=3))
)
PROOFS = st.none() | st.binary(max_size=6) | st.sampled_from([b"%" * 255, b"%" * 256, bytes(5000)])
PLACES = st.builds(
    attach,
    st.builds(_StorageInfo, NAMES, NUMBERS, NUMBERS, st.sampled_from([None, ["stream.zstd"], []])),
    PROOFS,
)
PLANNER_DATA = st.none() | st.dictionaries(NAMES, st.tuples(NAMES, st.integers()))
STORAGE_META = st.none() | st.builds(StorageMeta, NAMES, NAMES)


@st.composite
def any_metadata(draw: st.DrawFn) -> Metadata:
    """Of tensors, and of places of most of them, and of others."""
    tensors = draw(st.dictionaries(NAMES, TENSORS, max_size=5))
    names = st.sampled_from(sorted(tensors)) | NAMES if tensors else NAMES
    indices = st.builds(MetadataIndex, names, st.none() | SIZES, st.none() | NUMBERS)
    places = draw(st.dictionaries(indices, PLACES, max_size=5))
    return Metadata(tensors, draw(PLANNER_DATA), places, draw(STORAGE_META))


@given(any_metadata())
def test_every_unpickler_gets_back_what_was_pickled(metadata: Metadata) -> None:
    data = pickled(metadata)
    for name, unpickled in UNPICKLERS.items():
        assert told(unpickled(data)) == told(metadata), name


@given(any_metadata())
def test_with_a_torch_whose_classes_are_others(metadata: Metadata) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "_FORESEEN", frozenset())
        data = pickled(metadata)
    assert told(pickle.loads(data)) == told(metadata)


def test_the_installed_torch_is_as_foreseen() -> None:
    assert set(room._ATTRIBUTES) == room._FORESEEN


def many(count: int) -> Metadata:
    """As many tensors of one form in one object."""
    tensors: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {
        f"layer.{number}": TensorStorageMetadata(
            TensorProperties(torch.float32),
            torch.Size([1024]),
            [ChunkStorageMetadata(torch.Size([0]), torch.Size([1024]))],
        )
        for number in range(count)
    }
    places = {
        MetadataIndex(name, torch.Size([0]), 0): attach(_StorageInfo("__0_0.distcp", 5600 * at, 5600), b"\x90abcd")
        for at, name in enumerate(tensors)
    }
    return Metadata(tensors, {name: (name,) for name in tensors}, places)


@pytest.mark.parametrize("unpickler", UNPICKLERS)
def test_names_beyond_a_frame_and_a_batch_of_the_pickler(unpickler: str) -> None:
    metadata = many(5000)
    assert told(UNPICKLERS[unpickler](pickled(metadata))) == told(metadata)


def test_metadata_without_places_stay_without() -> None:
    assert pickle.loads(pickled(Metadata({}))).storage_data is None
    assert pickle.loads(pickled(Metadata({}, storage_data={}))).storage_data == {}


def test_a_class_of_metadata_stays_that_class() -> None:
    found = pickle.loads(pickled(OtherMetadata({}, more=3)))
    assert type(found) is OtherMetadata
    assert found.more == 3


@dataclass
class OtherMetadata(Metadata):
    more: int = 0


def test_equal_parts_are_one() -> None:
    found = pickle.loads(pickled(many(100)))
    tensors, indices = found.state_dict_metadata.values(), found.storage_data
    parts = [(tensor.properties, tensor.size, tensor.chunks[0], tensor.chunks[0].offsets) for tensor in tensors]
    assert {tuple(map(id, each)) for each in parts} == {tuple(map(id, parts[0]))}
    assert {id(index.offset) for index in indices} == {id(parts[0][3])}
    assert [id(index.fqn) for index in indices] == [id(name) for name in found.state_dict_metadata]
    assert len({id(tensor.chunks) for tensor in tensors}) == 100  # lists can be changed: each has its own


def test_equal_sizes_of_different_forms_are_one() -> None:
    tensors: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {
        str(at): TensorStorageMetadata(
            TensorProperties(torch.float32),
            torch.Size([4096]),
            [ChunkStorageMetadata(torch.Size([at]), torch.Size([4096]))],
        )
        for at in range(50)
    }
    found = pickle.loads(pickled(Metadata(tensors))).state_dict_metadata.values()
    assert len({id(size) for tensor in found for size in (tensor.size, tensor.chunks[0].sizes)}) == 1


@pytest.mark.parametrize("size", [(), None, 5])
def test_parts_that_no_memo_keeps(size: Any) -> None:
    properties = TensorProperties(torch.float32)
    metadata = Metadata(
        {"w": TensorStorageMetadata(properties, size, [ChunkStorageMetadata(size, size)])},
        storage_data={MetadataIndex("w"): _StorageInfo(size, 0, 1)},
    )
    assert told(pickle.loads(pickled(metadata))) == told(metadata)


def test_places_without_an_attribute_that_another_torch_may_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = many(3)
    monkeypatch.setattr(room, "_FORESEEN", frozenset())
    monkeypatch.delattr(_StorageInfo, "transform_descriptors")
    for place in (metadata.storage_data or {}).values():
        del place.__dict__["transform_descriptors"]
    assert len(pickle.loads(pickled(metadata)).storage_data) == 3


def test_a_tensor_more_takes_little_more_than_half_of_what_pickle_writes() -> None:
    def more(pickled: Callable[[Any], bytes]) -> int:
        return len(pickled(many(2000))) - len(pickled(many(1000)))

    assert more(pickled) < 0.6 * more(pickle.dumps)
