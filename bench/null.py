"""A storage that does nothing, so that what DCP itself takes can be told from what a storage adds."""

from __future__ import annotations

import os
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future


class NullWriter(StorageWriter):
    """Says that everything was written."""

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:  # noqa: D102
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:  # noqa: D102
        pass

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:  # noqa: D102
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:  # noqa: D102
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:  # noqa: ARG002, D102
        future: Future[list[WriteResult]] = Future()
        future.set_result([WriteResult(index=item.index, size_in_bytes=0, storage_data=None) for item in plan.items])
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:  # noqa: D102
        pass

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:  # noqa: ARG003, D102
        return True


class NullReader(StorageReader):
    """Says that everything was read.

    Args:
        source: the metadata are read with this one, at construction.
    """

    def __init__(self, source: StorageReader) -> None:
        self._metadata = source.read_metadata()

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:  # noqa: D102
        pass

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ARG002, D102
        return self._metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:  # noqa: D102
        pass

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:  # noqa: D102
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:  # noqa: D102
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:  # noqa: ARG002, D102
        future: Future[None] = Future()
        future.set_result(None)
        return future

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:  # noqa: ARG003, D102
        return True
