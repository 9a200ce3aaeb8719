"""Items fetched whole, driven without network: reads are served from memory."""

from __future__ import annotations

import io
import tracemalloc
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.planner import ReadItem

from aiockpt.dcp import load
from aiockpt.dcp.tasks import Task
from aiockpt.dcp.whole_items import BufferedItem, TogetherItems
from aiockpt.errors import MetadataError
from aiockpt.model import MiB
from dcp.checkpoints import random_tensor, same_bits
from dcp.stored import Stored, Targets


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


def test_an_item_that_is_no_archive() -> None:
    stored = Stored()
    item = stored.add("w", torch.ones(300, 500))
    stored.data[:] = bytes(len(stored.data))
    with pytest.raises(MetadataError, match="'w' in s3://bucket/object"):
        stored.serve([BufferedItem(Targets(w=torch.zeros(300, 500)).loading, item)])
