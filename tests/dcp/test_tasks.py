"""What all tasks of a load have in common, driven without network: reads are served from memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aiockpt.archive.torchsave import storage_view
from aiockpt.dcp import load
from aiockpt.dcp.tasks import landable, tensor_at
from aiockpt.errors import ChecksumMismatch, TargetMismatch
from dcp.checkpoints import random_tensor, raw_bytes, same_bits
from dcp.stored import Stored, Targets

KINDS: dict[str, Any] = {
    "small": random_tensor((3, 5), torch.float32, 1),
    "large": random_tensor((300, 500), torch.float32, 1),
    "large transposed": random_tensor((300, 500), torch.float32, 1).t(),
    "object": {"a": [1, 2, 3]},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("times", [1, 2])
def test_every_byte_that_counts_is_proved(kind: str, times: int) -> None:
    """Damage on the way anywhere in the elements is mended once, and reported if it stays."""
    value = KINDS[kind]
    stored = Stored()
    item = stored.add("w", value)
    is_tensor = isinstance(value, torch.Tensor)
    known = storage_view(value).tobytes()[-40:] if is_tensor else b"}q\x00"
    middle = stored.data.index(known) + 5
    planner = Targets(w=torch.zeros(value.shape if is_tensor else 0))
    first = list(load._tasks(planner.loading, [item]))
    if times == 1:
        stored.serve(first, {middle: 1})
        assert same_bits(planner.targets["w"] if is_tensor else planner.objects["w"], value)
    else:
        with pytest.raises(ChecksumMismatch, match="'w' in s3://bucket/object") as caught:
            stored.serve(first, {middle: 2})
        assert not planner.committed
        assert not planner.objects
        assert str(item.offset) in str(caught.value)


@pytest.mark.parametrize("shape", [(3, 5), (300, 500)])
def test_a_target_of_another_shape_is_refused_before_anything_is_written_to_it(shape: tuple[int, int]) -> None:
    stored = Stored()
    item = stored.add("w", torch.ones(shape))
    planner = Targets(w=torch.zeros(2, 2))
    with pytest.raises(TargetMismatch, match="'w'"):
        stored.serve(list(load._tasks(planner.loading, [item])))
    assert not planner.targets["w"].any()


@pytest.mark.parametrize("shape", [(3, 5), (300, 500)])
def test_a_sparse_target_is_refused(shape: tuple[int, int]) -> None:
    """To copy into it would change nothing that the caller has, and say nothing of it."""
    stored = Stored()
    item = stored.add("w", torch.ones(shape))
    planner = Targets(w=torch.zeros(shape).to_sparse())
    with pytest.raises(TargetMismatch, match=r"'w'.*sparse"):
        stored.serve(list(load._tasks(planner.loading, [item])))


@pytest.mark.parametrize("kind", ["small", "large", "large transposed"])
def test_damage_around_the_elements_does_not_hide_damage_in_them(kind: str) -> None:
    """Python's zipfile refuses such archives, torch's reader does not, nor does it look at CRC32s."""
    stored = Stored()
    value = KINDS[kind]
    item = stored.add("w", value)
    middle = stored.data.index(storage_view(value).tobytes()[-40:]) + 5
    stored.data[middle] ^= 1
    stored.data[stored.data.index(b"byteorder")] ^= 0x80
    planner = Targets(w=torch.zeros(value.shape))
    with pytest.raises(ChecksumMismatch, match="'w'"):
        stored.serve(list(load._tasks(planner.loading, [item])))
    assert not planner.committed


@pytest.mark.parametrize(
    ("tensor", "dtype", "expected"),
    [
        (torch.zeros(3, 4), torch.float32, True),
        (torch.zeros(()), torch.float32, True),
        (torch.zeros(3, 4), torch.float64, False),
        (torch.zeros(3, 4).t(), torch.float32, False),
        (torch.zeros(3, 4)[1:], torch.float32, True),
        (torch.zeros(3, 4, dtype=torch.complex64).conj(), torch.complex64, False),
        (torch.zeros(3, 4, device="meta"), torch.float32, False),
    ],
)
def test_landable(tensor: torch.Tensor, dtype: torch.dtype, expected: bool) -> None:
    assert landable(tensor, dtype) is expected


def test_a_tensor_over_memory() -> None:
    memory = memoryview(bytearray(range(12)))
    assert tensor_at(memory, torch.int16, (2, 3)).tolist() == [[256, 770, 1284], [1798, 2312, 2826]]
    assert tensor_at(memory[:0], torch.int16, (0, 3)).shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64, torch.float64, torch.int16])
@pytest.mark.parametrize("start", range(0, 20, 3))
def test_a_tensor_over_memory_is_aligned(dtype: torch.dtype, start: int) -> None:
    """A copy of one unaligned element of complex128 was a segmentation fault."""
    stored = random_tensor((1, 2), dtype)
    memory = memoryview(bytearray(start) + raw_bytes(stored))[start:]
    tensor = tensor_at(memory, dtype, (1, 2))
    assert tensor.data_ptr() % dtype.itemsize == 0
    target = torch.zeros((1, 1), dtype=dtype)
    assert same_bits(target.copy_(tensor[:, :1]), stored[:, :1])
