"""Which part of each tensor a rank of a given world would load: what DCP's planner asks for, from metadata alone. Pure.

Metadata do not say how a model will be sharded; what is assumed is what FSDP does: every tensor is cut along one
dimension into as many pieces as there are ranks, as ``torch.chunk`` cuts; scalars, and tensors that are named, are
loaded whole by every rank, as are serialized objects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list


@dataclass(frozen=True, slots=True)
class World:
    """The ranks that load, and how tensors are spread over them.

    Attributes:
        size: how many ranks.
        dim: the dimension that is cut; of tensors with fewer, the last one.
        is_replicated: whether a tensor, by its name, is loaded whole by every rank.
    """

    size: int
    dim: int = 0
    is_replicated: Callable[[str], bool] = lambda _: False


def local_chunk(name: str, shape: tuple[int, ...], world: World, rank: int) -> ChunkStorageMetadata | None:
    """The part of a tensor that a rank has; None if it has none."""
    offsets, sizes = [0] * len(shape), list(shape)
    if shape and not world.is_replicated(name):
        dim = min(world.dim, len(shape) - 1)
        step = math.ceil(shape[dim] / world.size)
        offsets[dim] = min(rank * step, shape[dim])
        sizes[dim] = min(step, shape[dim] - offsets[dim])
    if 0 in sizes and 0 not in shape:
        return None
    return ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))


def read_items(metadata: Metadata, world: World, rank: int) -> Iterator[ReadItem]:
    """What DCP's planner would ask a storage reader for, on one rank."""
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            index, nothing = MetadataIndex(name), torch.Size((0,))
            yield ReadItem(LoadItemType.BYTE_IO, index, nothing, index, nothing, nothing)
        elif (chunk := local_chunk(name, tuple(entry.size), world, rank)) is not None:
            yield from create_read_items_for_chunk_list(name, entry, [chunk])
