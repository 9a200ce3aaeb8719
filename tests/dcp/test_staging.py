from __future__ import annotations

import os

import torch
from hypothesis import given
from hypothesis import strategies as st

from aiockpt.dcp.staging import SMALLEST_SLAB_BYTES, Ring, blocks, slab_bytes, staged_blocks
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
    for copy in staged_blocks(tensor, 1600, reserved.append, Ring()):
        assert copy.is_contiguous()
        assert sum(reserved) >= sum(c.nbytes for c in [*copies, copy])
        copies.append(copy)
    assert sum(reserved) == tensor.nbytes
    assert max(reserved) <= 1600
    assert torch.equal(torch.cat([c.reshape(-1) for c in copies]), tensor.reshape(-1))


def test_staged_blocks_of_nothing_are_none() -> None:
    assert list(staged_blocks(torch.empty(0, 3), 10, lambda _: None, Ring())) == []


def test_rows_are_cut_into_blocks_of_about_equal_size() -> None:
    tensor = torch.empty(100, 20, dtype=torch.uint8)[:, ::2]
    assert [block.nbytes for block in blocks(tensor, 900)] == [500, 500]


def test_copies_of_large_blocks_take_turns_in_the_same_memory() -> None:
    ring, count = Ring(), 12
    tensor = torch.arange(2 * count * SMALLEST_SLAB_BYTES, dtype=torch.int32).view(2, -1).t()
    places: set[int] = set()
    expected = iter(blocks(tensor, 4 * SMALLEST_SLAB_BYTES))
    for copy in staged_blocks(tensor, 4 * SMALLEST_SLAB_BYTES, lambda _: None, ring):
        assert torch.equal(copy, next(expected))
        places.add(copy.data_ptr())
        del copy
    assert next(expected, None) is None
    assert len(places) <= 3  # one that is looked at, one that is made ahead, and a moment between


def test_a_copy_that_is_kept_is_not_written_over() -> None:
    tensor = torch.arange(4 * SMALLEST_SLAB_BYTES, dtype=torch.int32).view(2, -1).t()
    copies = list(staged_blocks(tensor, SMALLEST_SLAB_BYTES, lambda _: None, Ring()))
    assert torch.equal(torch.cat([copy.reshape(-1) for copy in copies]), tensor.reshape(-1))


@given(st.lists(st.tuples(st.integers(1, 9 * SMALLEST_SLAB_BYTES), st.integers(0, 3)), max_size=30))
def test_a_ring_holds_no_more_than_was_taken_at_once(turns: list[tuple[int, int]]) -> None:
    """What is free in it and what is taken, together, is never more than the most that was taken."""
    ring, taken, most, seen = Ring(), list[torch.Tensor](), 0, 0
    for nbytes, given_back in turns:
        slab = ring.take(nbytes)
        assert slab.nbytes == slab_bytes(nbytes) >= nbytes
        slab[-1] = 1
        if slab.nbytes >= SMALLEST_SLAB_BYTES:
            assert slab.nbytes < 2 * nbytes
            taken.append(slab)
        most = max(most, sum(one.nbytes for one in taken))
        assert len({one.data_ptr() for one in taken}) == len(taken)
        seen = max(seen, ring.free_bytes + sum(one.nbytes for one in taken))
        for _ in range(min(given_back, len(taken))):
            ring.give(taken.pop(0))
    assert seen <= most


def test_small_blocks_are_no_slabs() -> None:
    ring = Ring()
    ring.give(ring.take(12))
    assert slab_bytes(12) == 12
    assert ring.free_bytes == 0


def test_a_forked_child_has_memory_of_its_own() -> None:
    slab = Ring().take(SMALLEST_SLAB_BYTES)
    slab[0] = 1
    if not (child := os.fork()):
        slab.numpy()[0] = 2
        os._exit(0)
    os.waitpid(child, 0)
    assert slab[0] == 1
