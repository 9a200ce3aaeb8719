from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from aiockpt.dcp.files import LARGE_FRACTION, FilePlan, split
from aiockpt.model import KiB


def item(name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> WriteItem:
    size = torch.Size(shape)
    chunk = ChunkStorageMetadata(torch.Size([0] * len(shape)), size)
    data = TensorWriteData(chunk, TensorProperties(dtype), size)
    return WriteItem(MetadataIndex(name), WriteItemType.TENSOR, tensor_data=data)


def serialized(name: str) -> WriteItem:
    return WriteItem(MetadataIndex(name), WriteItemType.BYTE_IO)


def names(items: list[WriteItem]) -> list[str]:
    return [item.index.fqn for item in items]


def test_estimates_count_elements_and_archives() -> None:
    plan = FilePlan("x", [item("w", (100, 50), torch.float64), item("v", (), torch.int8), serialized("o")])
    assert 100 * 50 * 8 + 1 <= plan.estimated_nbytes() <= 100 * 50 * 8 + 1 + 3 * 4 * KiB


ITEMS = st.lists(st.none() | st.integers(0, 50) | st.integers(0, 100_000), max_size=60)


@given(ITEMS, st.integers(1, 9))
def test_every_item_is_in_one_file_behind_those_before_it(sizes: list[int | None], count: int) -> None:
    items = [serialized(f"{n}") if size is None else item(f"{n}", (size,)) for n, size in enumerate(sizes)]
    files = split(items, count)
    assert len(files) == count
    assert sorted(int(name) for file in files for name in names(file)) == list(range(len(items)))
    assert all(names(file) == sorted(names(file), key=int) for file in files)


def weight(items: Sequence[WriteItem]) -> int:
    return FilePlan("x", items).estimated_nbytes()


@given(ITEMS, st.integers(1, 9))
def test_files_are_of_about_one_size(sizes: list[int | None], count: int) -> None:
    items = [item(f"{n}", (size,)) for n, size in enumerate(size for size in sizes if size is not None)]
    share = weight(items) / count
    largest = max((one for one in (weight([item]) for item in items) if one > share * LARGE_FRACTION), default=0)
    assert max(map(weight, split(items, count))) <= share * (1 + LARGE_FRACTION) + largest


def test_empty_tensors_weigh_as_much_as_their_archives() -> None:
    assert [len(file) for file in split([item(f"{n}", (0,)) for n in range(800)], 8)] == [100] * 8
    items = [*(item(f"large {n}", (2_000_000,)) for n in range(20)), *(item(f"{n}", (4,)) for n in range(5980))]
    weights = [weight(file) for file in split(items, 8)]
    assert max(weights) <= 1.02 * min(weights)


def test_equal_tensors_and_serialized_objects_are_dealt_out_evenly() -> None:
    large = [item(f"{n}", (1000,)) for n in range(16)]
    assert [len(file) for file in split([*large, *map(serialized, "abcdefgh")], 8)] == [3] * 8


def test_small_neighbours_stay_together() -> None:
    files = split([item(f"{n}", (10,)) for n in range(800)], 8)
    assert [names(file) for file in files] == [[f"{n}" for n in range(k * 100, k * 100 + 100)] for k in range(8)]


def test_small_ones_make_up_for_what_large_ones_leave() -> None:
    sizes = [400_000, *[10] * 300, 300_000]
    first, second = split([item(f"{n}", (size,)) for n, size in enumerate(sizes)], 2)
    assert abs(weight(first) - weight(second)) <= 2 * weight([item("small", (10,))])
