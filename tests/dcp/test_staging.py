from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from aiockpt.dcp.staging import blocks, host_memory, staged_blocks
from dcp.checkpoints import random_tensor, raw_bytes


@st.composite
def views(draw: st.DrawFn) -> torch.Tensor:
    """Tensors of any layout: permuted, stepped, expanded, empty, 0-d."""
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    dtype = draw(st.sampled_from([torch.uint8, torch.float32, torch.complex128]))
    tensor = random_tensor(tuple(2 * n for n in shape), dtype)
    steps = tuple(slice(None, None, draw(st.sampled_from([1, 2]))) for _ in shape)
    tensor = tensor[steps].permute(draw(st.permutations(range(len(shape)))))
    if draw(st.booleans()):
        tensor = tensor.unsqueeze(0).expand(draw(st.integers(1, 3)), *tensor.shape)
    return tensor


@given(views(), st.integers(1, 200))
def test_blocks_end_to_end_are_the_tensor(tensor: torch.Tensor, block_bytes: int) -> None:
    assert b"".join(raw_bytes(block) for block in blocks(tensor, block_bytes)) == raw_bytes(tensor)


@given(views(), st.integers(1, 200))
def test_blocks_are_views_of_bounded_size_and_never_empty(tensor: torch.Tensor, block_bytes: int) -> None:
    for block in blocks(tensor, block_bytes):
        assert block.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
        assert 0 < block.nbytes <= block_bytes or block.numel() == 1


def test_contiguous_tensors_are_cut_evenly() -> None:
    tensor = torch.empty(7, 100, dtype=torch.uint8)
    assert [block.nbytes for block in blocks(tensor, 300)] == [300, 300, 100]


def test_staged_blocks_are_contiguous_copies_reserved_before_they_are_made() -> None:
    tensor = torch.arange(5000, dtype=torch.int32).reshape(50, 100).t()
    reserved: list[int] = []
    copies: list[torch.Tensor] = []
    for copy in staged_blocks(tensor, 1600, reserved.append):
        assert copy.is_contiguous()
        assert sum(reserved) >= sum(c.nbytes for c in [*copies, copy])
        copies.append(copy)
    assert sum(reserved) == tensor.nbytes
    assert max(reserved) <= 1600
    assert torch.equal(torch.cat([c.reshape(-1) for c in copies]), tensor.reshape(-1))


def test_staged_blocks_of_nothing_are_none() -> None:
    assert list(staged_blocks(torch.empty(0, 3), 10, lambda _: None)) == []


def test_host_memory_is_bytes() -> None:
    memory = host_memory(12, pinned=False)
    assert (memory.dtype, memory.nbytes, memory.is_contiguous()) == (torch.uint8, 12, True)
