from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType

from aiockpt.inspection.sharding import World, local_chunk, read_items


@given(st.lists(st.integers(0, 40), max_size=3), st.integers(1, 9), st.integers(0, 2))
def test_pieces_are_those_of_torch_chunk(shape: list[int], ranks: int, dim: int) -> None:
    world = World(ranks, dim)
    tensor = torch.arange(torch.Size(shape).numel()).view(shape)
    pieces = [local_chunk("w", tuple(shape), world, rank) for rank in range(ranks)]
    if not shape:
        assert pieces == [ChunkStorageMetadata(torch.Size(), torch.Size())] * ranks
        return
    along = min(dim, len(shape) - 1)
    expected = list(torch.chunk(tensor, ranks, along)) if tensor.numel() else []
    for rank, piece in enumerate(pieces):
        if rank < len(expected):
            assert piece is not None
            mine = tensor[tuple(slice(at, at + n) for at, n in zip(piece.offsets, piece.sizes, strict=True))]
            assert torch.equal(mine, expected[rank])
        else:
            assert piece is None or 0 in piece.sizes


@pytest.mark.parametrize(("name", "sizes"), [("norm.weight", (8,)), ("w", (2,))])
def test_named_tensors_are_replicated(name: str, sizes: tuple[int, ...]) -> None:
    chunk = local_chunk(name, (8,), World(4, is_replicated=lambda name: name.startswith("norm")), 1)
    assert chunk is not None
    assert tuple(chunk.sizes) == sizes


def test_read_items_of_a_rank() -> None:
    halves = [ChunkStorageMetadata(torch.Size((at, 0)), torch.Size((4, 3))) for at in (0, 4)]
    entry = TensorStorageMetadata(TensorProperties(dtype=torch.float32), torch.Size((8, 3)), halves)
    metadata = Metadata({"w": entry, "step": BytesStorageMetadata()})
    middle, step = read_items(metadata, World(4), 1)
    assert (middle.storage_index.offset, middle.storage_offsets, middle.lengths) == ((0, 0), (2, 0), (2, 3))
    assert (step.type, step.storage_index.fqn) == (LoadItemType.BYTE_IO, "step")
    two, _ = [item for item in read_items(metadata, World(1), 0) if item.type is LoadItemType.TENSOR]
    assert two.lengths == (4, 3)
