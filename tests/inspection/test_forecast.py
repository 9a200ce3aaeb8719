from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.filesystem import SerializationFormat
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem

from aiockpt.config import S3ClientConfig
from aiockpt.dcp.proof import ATTRIBUTE
from aiockpt.errors import MetadataError
from aiockpt.inspection.forecast import Forecast, forecast
from aiockpt.inspection.sharding import World, read_items
from aiockpt.model import GiB, MiB, ObjectId
from aiockpt.testing import LocalEndpoint
from aiockpt.transfer.metadata import read_local_metadata
from dcp.checkpoints import Place, save
from dcp.conftest import local  # noqa: F401  # a fixture
from dcp.test_ranks import launch

STATE: dict[str, Any] = {
    "large": torch.zeros(1500, 4000),
    "half": torch.zeros(700, 1300, dtype=torch.bfloat16),
    "wide": torch.zeros(3, 600_000),
    "bias": torch.zeros(1300),
    "scalar": torch.tensor(3.0),
    "none": torch.zeros(0, 3),
    "step": 5,
    "blob": bytes(5 * MiB),
}


class Planner:
    """Gives the tensors that a real load fills."""

    def __init__(self, metadata: Metadata) -> None:
        self._entries = metadata.state_dict_metadata

    def resolve_tensor(self, read: ReadItem) -> torch.Tensor:
        entry = self._entries[read.storage_index.fqn]
        assert isinstance(entry, TensorStorageMetadata)
        return torch.empty(read.lengths, dtype=entry.properties.dtype)

    def commit_tensor(self, read: ReadItem, tensor: torch.Tensor) -> None:
        pass

    def load_bytes(self, read: ReadItem, value: object) -> None:
        pass


#: Enough for all that is staged: what shares requests is foreseen exactly then.
MEMORY_BYTES = 64 * MiB


def foreseen(place: Place, world: World, rank: int) -> Forecast:
    metadata = place.reader().read_metadata()
    base = ObjectId(place.bucket, "ckpt")
    return forecast(metadata, base, read_items(metadata, world, rank), S3ClientConfig(memory_bytes=MEMORY_BYTES))


def counted(endpoint: LocalEndpoint) -> tuple[int, int, int]:
    """GETs and HEADs of data, and the bytes of the GETs, that the endpoint has served."""
    data = [one for one in endpoint.requests() if one.key.endswith(".distcp")]
    gets = [one for one in data if one.operation == "GetObject"]
    heads = [one for one in data if one.operation == "HeadObject"]
    return len(gets), len(heads), sum(one.body_bytes_out for one in gets)


@pytest.mark.parametrize(("size", "dim"), [(1, 0), (3, 0), (3, 1), (7, 1)])
def test_a_resharded_load_does_what_was_foreseen(
    local: Place,  # noqa: F811  # the fixture
    local_endpoint: LocalEndpoint,
    size: int,
    dim: int,
) -> None:
    local.save(STATE, thread_count=2)
    for rank in range(size):
        one = foreseen(local, World(size, dim), rank)
        reader = local.reader(hedge_share=0, memory_bytes=MEMORY_BYTES)
        metadata = reader.read_metadata()
        reader.set_up_storage_reader(metadata, is_coordinator=True)
        plan = reader.prepare_local_plan(LoadPlan(list(read_items(metadata, World(size, dim), rank))))
        local_endpoint.reset_stats()
        reader.read_data(plan, Planner(metadata))  # type: ignore[arg-type]  # all that is asked of one
        assert counted(local_endpoint) == (one.gets, one.heads, one.fetched_bytes)
        assert one.exact
        assert one.fetched_bytes >= one.wanted_bytes


def test_ranks_of_dcp_do_what_was_foreseen(local: Place, local_endpoint: LocalEndpoint) -> None:  # noqa: F811
    launch(local, 2, "save")
    world = World(3, is_replicated=lambda name: name in {"replicated", "plain"})
    ranks = [foreseen(local, world, rank) for rank in range(world.size)]
    local_endpoint.reset_stats()
    launch(local, world.size, "load")
    gets, heads, nbytes = counted(local_endpoint)
    assert gets == sum(one.gets for one in ranks)
    assert heads == sum(one.heads for one in ranks)
    assert nbytes == sum(one.fetched_bytes for one in ranks)
    metadata = [one for one in local_endpoint.requests() if one.key.endswith(".metadata")]
    assert len(metadata) == world.size


def test_places_that_only_objects_tell_are_estimated(local: Place) -> None:  # noqa: F811
    state = {"w": torch.zeros(800, 900), "v": torch.zeros(300, 300)}
    local.save(state, serialization_format=SerializationFormat.SAFETENSORS)
    one = foreseen(local, World(2), 0)
    assert not one.exact
    assert one.wanted_bytes == (400 * 900 + 150 * 300) * 4
    assert one.fetched_bytes > one.wanted_bytes


def test_archives_of_another_form_are_estimated(local: Place, tmp_path: Path) -> None:  # noqa: F811
    save({"w": torch.zeros(800, 900)}, FileSystemWriter(tmp_path, sync_files=False))
    metadata = read_local_metadata(tmp_path)[".metadata"]
    (place,) = metadata.storage_data.values()
    place.length += 64
    base = ObjectId(local.bucket, "ckpt")
    one = forecast(metadata, base, read_items(metadata, World(2), 0), S3ClientConfig())
    assert not one.exact
    assert one.fetched_bytes > one.wanted_bytes == 400 * 900 * 4


def test_tensors_larger_than_memory_cost_none(local: Place) -> None:  # noqa: F811
    local.save({"w": torch.zeros(4)})
    metadata = local.reader().read_metadata()
    entry = metadata.state_dict_metadata["w"]
    assert isinstance(entry, TensorStorageMetadata)
    elements = 1024 * GiB
    entry.size = entry.chunks[0].sizes = torch.Size((elements,))
    (place,) = metadata.storage_data.values()
    place.length = elements * 4 + 1500
    delattr(place, ATTRIBUTE)  # that of four zeros
    one = forecast(metadata, ObjectId(local.bucket, "ckpt"), read_items(metadata, World(1), 0), S3ClientConfig())
    assert one.wanted_bytes == elements * 4
    assert one.gets >= elements * 4 / (16 * MiB)


def test_an_item_without_a_place(local: Place) -> None:  # noqa: F811
    local.save({"w": torch.zeros(4)})
    metadata = local.reader().read_metadata()
    metadata.storage_data = {}
    with pytest.raises(MetadataError, match="has no place for 'w'"):
        forecast(metadata, ObjectId(local.bucket, "ckpt"), read_items(metadata, World(1), 0), S3ClientConfig())
