"""What metadata say is believed only as far as the objects bear it out: before memory is taken, not after."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import SerializationFormat, _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, TensorStorageMetadata

from aiockpt.dcp.metadata import dump_metadata
from aiockpt.errors import AiockptError, MetadataError
from aiockpt.model import MiB
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from dcp.checkpoints import Place, emptied, failure, random_tensor, same_bits

LARGE = random_tensor((500, 600), torch.float32, 1)
STATE = {"large": LARGE, "small": LARGE[:3].clone(), "object": list(range(100)), "columns": LARGE.t().contiguous().t()}
TERABYTE = 1 << 40


def change(
    place: Place, edit: Callable[[str, _StorageInfo], None], of_tensor: Callable[[Any], None] | None = None
) -> None:
    metadata = place.reader().read_metadata()
    for index, info in (metadata.storage_data or {}).items():
        edit(index.fqn, info)
    for tensor in metadata.state_dict_metadata.values():
        if of_tensor is not None:
            of_tensor(tensor)
    place.put("ckpt/.metadata", dump_metadata(metadata))


def load_fails_within(place: Place, nbytes: int) -> BaseException:
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointException) as caught:
            place.load(emptied(STATE))
        assert tracemalloc.get_traced_memory()[1] < nbytes
    finally:
        tracemalloc.stop()
    return failure(caught.value)


@pytest.mark.parametrize("form", SerializationFormat)
@pytest.mark.parametrize("name", STATE)
@pytest.mark.parametrize("where", ["length", "offset", "both"])
def test_a_terabyte_that_is_not_there_takes_no_memory(
    local: Place, form: SerializationFormat, name: str, where: str
) -> None:
    local.save(STATE, serialization_format=form, single_file_per_rank=False)

    def edit(fqn: str, info: _StorageInfo) -> None:
        if fqn.startswith(name):
            info.length += TERABYTE * (where != "offset")
            info.offset += TERABYTE * (where != "length")

    change(local, edit)
    error = load_fails_within(local, 32 * MiB)
    assert isinstance(error, AiockptError)
    assert local.uri("ckpt") in str(error)


def test_a_safetensors_header_that_is_not_there_takes_no_memory(local: Place) -> None:
    local.save({"large": LARGE}, serialization_format=SerializationFormat.SAFETENSORS)
    data = local.get("ckpt/__0_0.distcp")
    local.put("ckpt/__0_0.distcp", (99_999_992).to_bytes(8, "little") + data[8:])
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointException) as caught:
            local.load({"large": torch.zeros_like(LARGE)})
        assert tracemalloc.get_traced_memory()[1] < 32 * MiB
    finally:
        tracemalloc.stop()
    error = failure(caught.value)
    assert isinstance(error, MetadataError)
    assert "'large'" in str(error)


def test_items_that_overlap_are_refused(local: Place) -> None:
    local.save(STATE)

    def edit(fqn: str, info: _StorageInfo) -> None:
        info.offset //= 2

    change(local, edit)
    error = load_fails_within(local, 32 * MiB)
    assert isinstance(error, MetadataError)
    assert "overlaps" in str(error)


def test_a_chunk_that_no_tensor_has(local: Place) -> None:
    local.save({"large": LARGE})

    def of_tensor(tensor: TensorStorageMetadata) -> None:
        tensor.properties.dtype = "float32"  # type: ignore[assignment]

    change(local, lambda *_: None, of_tensor)
    with pytest.raises(CheckpointException) as caught:
        local.load({"large": torch.zeros_like(LARGE)})
    assert isinstance(failure(caught.value), MetadataError)


def test_metadata_damaged_on_the_way_are_fetched_again(local: Place, local_endpoint: LocalEndpoint) -> None:
    local.save(STATE)
    for at in (0, 200, 700):
        flip = Fault(FaultKind.FLIP_BIT, operation="GetObject", key=".metadata", after_bytes=at)
        local_endpoint.add_fault(flip)
        assert same_bits(local.load(emptied(STATE)), STATE)
    assert local_endpoint.stats().faults == 3


def test_metadata_damaged_at_rest_name_themselves(local: Place) -> None:
    local.save(STATE)
    data = bytearray(local.get("ckpt/.metadata"))
    data[200] ^= 1
    local.put("ckpt/.metadata", bytes(data))  # as a service keeps it that has no CRC32 of its own
    with pytest.raises(CheckpointException) as caught:
        local.load(emptied(STATE))
    error = failure(caught.value)
    assert isinstance(error, MetadataError)
    assert local.uri("ckpt/.metadata") in str(error)
    assert "CRC32" in str(error)


def test_stock_torch_reads_the_same_from_ours(local: Place) -> None:
    local.save(STATE)
    stock = pickle.loads(local.get("ckpt/.metadata"))
    assert isinstance(stock, Metadata)
    assert {type(value) for value in stock.state_dict_metadata.values()} == {
        TensorStorageMetadata,
        BytesStorageMetadata,
    }
    ours = local.reader().read_metadata()
    assert ours.storage_meta
    ours.storage_meta.load_id = None
    assert stock == ours
