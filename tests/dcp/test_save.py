"""What a save sends, counted by the local endpoint; for its failures see test_storage_writer."""

from __future__ import annotations

import pytest
import torch
from torch.distributed.checkpoint.filesystem import SerializationFormat
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from aiockpt.dcp.save import FilePlan, _standalone
from aiockpt.model import KiB, MiB
from aiockpt.testing import LocalEndpoint
from dcp.checkpoints import Place, nbytes_of, random_tensor

STATE = {f"w{n}": random_tensor((1024, 1500), torch.float32, n) for n in range(4)}


def item(shape: tuple[int, ...], dtype: torch.dtype) -> WriteItem:
    size = torch.Size(shape)
    chunk = ChunkStorageMetadata(torch.Size([0] * len(shape)), size)
    data = TensorWriteData(chunk, TensorProperties(dtype), size)
    return WriteItem(MetadataIndex("w"), WriteItemType.TENSOR, tensor_data=data)


def test_estimates_count_elements_and_archives() -> None:
    objects = WriteItem(MetadataIndex("o"), WriteItemType.BYTE_IO)
    plan = FilePlan("x", [item((100, 50), torch.float64), item((), torch.int8), objects])
    assert 100 * 50 * 8 + 1 <= plan.estimated_nbytes() <= 100 * 50 * 8 + 1 + 3 * 4 * KiB


@pytest.mark.parametrize("form", SerializationFormat)
def test_every_byte_is_sent_once_in_parts_of_one_size(
    local: Place, local_endpoint: LocalEndpoint, form: SerializationFormat
) -> None:
    local.save(STATE, serialization_format=form, part_size=5 * MiB)
    assert local_endpoint.stats().body_bytes_in <= 1.01 * nbytes_of(STATE)
    parts = [r for r in local_endpoint.requests() if r.operation == "UploadPart"]
    sizes = [part.body_bytes_in for part in sorted(parts, key=lambda part: part.part_number)]
    assert len(set(sizes[:-1])) == 1
    assert sizes[-1] <= sizes[0]


def test_a_small_checkpoint_is_two_puts_and_a_look(local: Place, local_endpoint: LocalEndpoint) -> None:
    local.save({"w": torch.ones(30, 30), "step": 3})
    requests = local_endpoint.stats().requests
    assert requests["PutObject"] == 2
    assert "CreateMultipartUpload" not in requests
    assert local_endpoint.stats().requests_total <= 4


def test_many_small_tensors_take_few_requests(local: Place, local_endpoint: LocalEndpoint) -> None:
    local.save({f"w{n}": torch.full((20,), float(n)) for n in range(2000)})
    assert local_endpoint.stats().requests_total <= 6


def test_views_leave_the_rest_of_their_storage_behind(local: Place, local_endpoint: LocalEndpoint) -> None:
    large = torch.randn(1000, 1000)
    local.save({"rows": large[:10], "columns": large[:, :10], "q": large[0]})
    assert local_endpoint.stats().body_bytes_in < 100 * KiB


@pytest.mark.parametrize(
    "tensor", [torch.randn(10, 10)[2:4], torch.randn(10, 10)[:, 2:4], torch.randn(10, 10), torch.randn(5).conj()]
)
def test_standalone_tensors_have_storage_of_their_own_size(tensor: torch.Tensor) -> None:
    alone = _standalone(tensor)
    assert torch.equal(alone, tensor)
    assert alone.untyped_storage().nbytes() == tensor.nbytes
