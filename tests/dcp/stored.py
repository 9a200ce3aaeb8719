"""Items stored in memory, and a planner that gives targets by name: load tasks are driven with them without network."""

from __future__ import annotations

import io
from collections import deque
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageReaderTransforms
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlanner, ReadItem

from aiockpt.dcp.items import StoredItem
from aiockpt.dcp.tasks import Loading, Task
from aiockpt.model import ObjectId
from aiockpt.observe.recorder import Recorder

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
