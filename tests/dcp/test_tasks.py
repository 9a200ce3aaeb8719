"""The tasks of a load, driven without network: reads are served from memory."""

from __future__ import annotations

import io
import tracemalloc
from collections import deque
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import _StorageReaderTransforms
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlanner, ReadItem

from aiockpt.archive.torchsave import storage_view
from aiockpt.dcp import load
from aiockpt.dcp.items import StoredItem
from aiockpt.dcp.tasks import BufferedItem, Loading, Task, TogetherItems, landable, tensor_at
from aiockpt.errors import ChecksumMismatch, MetadataError, TargetMismatch
from aiockpt.model import KiB, MiB, ObjectId
from aiockpt.observe.recorder import Recorder
from dcp.checkpoints import random_tensor, same_bits

SOURCE = ObjectId("bucket", "object")


class Targets(LoadPlanner):
    """Gives tensors by name, and notes what is committed."""

    def __init__(self, **targets: torch.Tensor) -> None:
        self.targets = targets
        self.committed: list[str] = []
        self.objects: dict[str, Any] = {}

    def set_up_planner(self, *args: Any, **kwargs: Any) -> None: ...
    def create_local_plan(self) -> Any: ...
    def create_global_plan(self, global_plan: Any) -> Any: ...
    def finish_plan(self, central_plan: Any) -> Any: ...

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        self.objects[read_item.dest_index.fqn] = torch.load(value, weights_only=True)

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        return self.targets[read_item.dest_index.fqn]

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        self.committed.append(read_item.dest_index.fqn)

    @property
    def loading(self) -> Loading:
        recorder = Recorder("load", "s3://bucket/x")
        return Loading(self, _StorageReaderTransforms(), True, lambda _: 1 << 30, recorder)


class Stored:
    """An object of torch.save archives, and the items in it."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.fetched = 0

    def add(
        self, name: str, value: Any, starts: tuple[int, ...] | None = None, lengths: tuple[int, ...] | None = None
    ) -> StoredItem:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        offset = len(self.data)
        self.data += buffer.getvalue()
        is_tensor = isinstance(value, torch.Tensor)
        shape = tuple(value.shape) if is_tensor else ()
        index = MetadataIndex(name)
        read = ReadItem(
            LoadItemType.TENSOR if is_tensor else LoadItemType.BYTE_IO,
            index,
            torch.Size([0] * len(shape)),
            index,
            torch.Size(starts or [0] * len(shape)),
            torch.Size(shape if lengths is None else lengths),
        )
        return StoredItem(read, SOURCE, offset, len(buffer.getvalue()), (), value.dtype if is_tensor else None, shape)

    def serve(self, first: list[Task], flips: dict[int, int] | None = None) -> None:
        """Perform tasks until none is left; ``flips``: how often a byte arrives damaged, by its position."""
        flips = flips or {}
        todo = deque(first)
        while todo:
            task = todo.popleft()
            for read in task.reads():
                span = read.span
                piece = bytearray(self.data[span.start : span.end])
                for at in flips:
                    if span.start <= at < span.end and flips[at]:
                        piece[at - span.start] ^= 1
                        flips[at] -= 1
                read.into[:] = piece
                self.fetched += len(span)
            todo.extend(task.landed())


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


def peak_bytes(task: Task, data: memoryview) -> int:
    """What Python objects of a task take at most."""
    tracemalloc.start()
    try:
        for read in task.reads():
            read.into[:] = data[read.span.start : read.span.end]
        assert list(task.landed()) == []
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class Bytes(Targets):
    """Takes objects without loading them."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        self.objects[read_item.dest_index.fqn] = value.seek(0, io.SEEK_END)


@pytest.mark.parametrize("value", ["x" * 4_000_000, random_tensor((500, 1000), torch.complex64, 1).conj()])
def test_what_is_buffered_stays_within_its_reservation(value: Any) -> None:
    stored = Stored()
    item = stored.add("w", value)
    is_tensor = isinstance(value, torch.Tensor)
    planner = Bytes(w=torch.zeros(500, 1000, dtype=torch.complex64) if is_tensor else torch.zeros(0))
    task = BufferedItem(planner.loading, item)
    by_torch = value.nbytes if is_tensor else 0  # which tracemalloc does not see
    assert task.staged_bytes == 2 * item.length + by_torch
    checking_bytes = 2 * MiB  # zipfile compares CRC32s in pieces of 1 MiB
    assert peak_bytes(task, memoryview(stored.data)) + by_torch <= task.staged_bytes + checking_bytes


def test_a_planner_may_close_what_it_gets() -> None:
    class Closing(Targets):
        def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
            value.write(b"mine now")
            value.close()

    stored = Stored()
    item = stored.add("w", [1, 2, 3])
    stored.serve([BufferedItem(Closing().loading, item)])


def test_neighbours_come_together_and_in_order() -> None:
    stored = Stored()
    tensors = {f"w{n}": random_tensor((n, 3), torch.float32, n) for n in range(1, 5)}
    items = [stored.add(name, tensor) for name, tensor in tensors.items()]
    planner = Targets(**{name: torch.zeros(tensor.shape) for name, tensor in tensors.items()})
    (together,) = load._tasks(planner.loading, items)
    assert isinstance(together, TogetherItems)
    assert len(together.reads()) == 1
    stored.serve([together])
    assert same_bits(planner.targets, tensors)
    assert planner.committed == list(tensors)


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


def test_an_item_that_is_no_archive() -> None:
    stored = Stored()
    item = stored.add("w", torch.ones(300, 500))
    stored.data[:] = bytes(len(stored.data))
    with pytest.raises(MetadataError, match="'w' in s3://bucket/object"):
        stored.serve([BufferedItem(Targets(w=torch.zeros(300, 500)).loading, item)])


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
