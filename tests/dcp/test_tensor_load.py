"""Tensors fetched in stretches, driven without network: reads are served from memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aiockpt.dcp import load
from aiockpt.dcp.proof import ProofWriter
from aiockpt.dcp.tasks import BLOCK_BYTES
from aiockpt.model import KiB, MiB
from dcp.checkpoints import random_tensor, raw_bytes, same_bits
from dcp.stored import Stored, Targets


@st.composite
def stored_and_wanted(draw: st.DrawFn) -> tuple[torch.Tensor, tuple[int, ...], tuple[int, ...]]:
    shape = tuple(draw(st.lists(st.integers(1, 6), max_size=3)))
    if draw(st.booleans()) and shape:
        shape = (*shape[:-1], shape[-1] * 20_000)  # beyond what is fetched together
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.uint8, torch.complex64, torch.bool]))
    tensor = random_tensor(shape, dtype, draw(st.integers(0, 3)))
    tensor = tensor.permute(draw(st.permutations(range(len(shape)))))
    lengths = tuple(draw(st.integers(1, side)) for side in tensor.shape)
    starts = tuple(draw(st.integers(0, side - n)) for side, n in zip(tensor.shape, lengths, strict=True))
    return tensor, starts, lengths


@given(stored_and_wanted(), st.sampled_from(["contiguous", "strided", "cast"]))
def test_whatever_is_stored_and_wanted_arrives(
    case: tuple[torch.Tensor, tuple[int, ...], tuple[int, ...]], kind: str
) -> None:
    tensor, starts, lengths = case
    stored = Stored()
    stored.data += b"something else"
    item = stored.add("w", tensor, starts, lengths)
    dtype = torch.complex128 if kind == "cast" else tensor.dtype
    target = torch.zeros((*lengths, 2), dtype=dtype)[..., 0] if kind == "strided" else torch.zeros(lengths, dtype=dtype)
    planner = Targets(w=target)
    stored.serve(list(load._tasks(planner.loading, [item])))
    wanted = tensor[tuple(slice(s, s + n) for s, n in zip(starts, lengths, strict=True))]
    assert same_bits(target, wanted.to(dtype)) or (kind == "cast" and torch.equal(target, wanted.to(dtype).clone()))
    assert planner.committed == ["w"]


def test_transposed_tensors_are_fetched_once() -> None:
    stored = Stored()
    tensor = random_tensor((300, 500), torch.float32, 1).t()
    item = stored.add("w", tensor)
    planner = Targets(w=torch.zeros(500, 300))
    stored.serve(list(load._tasks(planner.loading, [item])))
    assert same_bits(planner.targets["w"], tensor)
    assert stored.fetched == item.length


@pytest.mark.parametrize(("starts", "lengths"), [((100, 0), (50, 300)), ((0, 100), (500, 50)), ((1, 2), (499, 298))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slices_of_transposed_tensors_fetch_what_they_need_once(
    starts: tuple[int, int], lengths: tuple[int, int], dtype: torch.dtype
) -> None:
    stored = Stored()
    tensor = random_tensor((300, 500), torch.int32, 1).float().t()
    item = stored.add("w", tensor, starts, lengths)
    target = torch.zeros(lengths, dtype=dtype)
    stored.serve(list(load._tasks(Targets(w=target).loading, [item])))
    part = tensor[starts[0] : starts[0] + lengths[0], starts[1] : starts[1] + lengths[1]]
    assert torch.equal(target, part.to(dtype))
    rows_nbytes = lengths[1] * tensor.shape[0] * 4  # as they lie in memory, gaps and all
    assert stored.fetched <= rows_nbytes + 3 * KiB


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_blocks_around_many_rows_take_little_memory_at_a_time(dtype: torch.dtype) -> None:
    stored = Stored()
    tensor = random_tensor((24, 768 * KiB), torch.int32, 1).float()  # rows of 3 MiB, blocks of 288 KiB
    starts, lengths = (0, 1000), (24, 300 * KiB)
    proof = ProofWriter(tensor.nbytes, tensor.shape)
    proof.add(memoryview(raw_bytes(tensor)))
    item = stored.add("w", tensor, starts, lengths)._replace(crc32s=proof.packed())
    target = torch.zeros(lengths, dtype=dtype)
    tasks = list(load._tasks(Targets(w=target).loading, [item]))
    beside = sum(task.staged_bytes for task in tasks) - (target.nbytes // 2 if dtype is torch.float64 else 0)
    assert beside > BLOCK_BYTES
    assert max(task.staged_bytes for task in tasks) <= BLOCK_BYTES + MiB
    stored.serve(tasks)
    assert torch.equal(target, tensor[:, 1000 : 1000 + 300 * KiB].to(dtype))
    assert stored.fetched <= target.numel() * 4 + 24 * 2 * 288 * KiB + 3 * KiB
    rests = [around for task in tasks for around in vars(task)["_surrounds"] if around.payload_at is not None]
    assert not any(len(rest.memory) for rest in rests)
