"""Loads: into the caller's tensors, or ahead of time into memory of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed._state_dict_utils import _copy_state_dict, _create_cpu_state_dict
from torch.distributed.checkpoint.planner import LoadPlanner

from aiockpt.awaitable.background import Background
from aiockpt.awaitable.checkpoint_calls import StateDict, checkpoint_at, hand_over, in_order, own_errors, resolved
from aiockpt.awaitable.operation import Operation
from aiockpt.awaitable.turns import next_turn, uses_collectives
from aiockpt.blocking.store import Store
from aiockpt.dcp.s3_file_system import S3StorageReader
from aiockpt.observe.report import Report
from aiockpt.scope import session


class LoadCall:
    """A load with all its arguments: checked, not begun.

    Args:
        store: the settings of the engine that performs it.
        uri, planner, process_group, no_dist: see ``aiockpt.load``.
        options: further arguments of ``S3StorageReader``.

    Raises:
        ConfigError: ``uri`` is none of S3.
        TypeError: an option that there is not.
    """

    def __init__(
        self,
        store: Store,
        uri: str | os.PathLike[str],
        *,
        planner: LoadPlanner | None,
        process_group: dist.ProcessGroup | None,
        no_dist: bool,
        options: Mapping[str, Any],
    ) -> None:
        self.uri = checkpoint_at(uri)
        self.reader = S3StorageReader(cast("str", store.region), self.uri, store.config, **options)
        self._planner = planner
        self._process_group = process_group
        self._no_dist = no_dist

    def begin(self, state_dict: StateDict) -> Operation[Report]:
        """Load into ``state_dict``."""

        def work() -> Report:
            loaded = resolved(in_order(state_dict))
            report = self._load(loaded)
            with session():  # from which a cancelled load is kept: nobody would expect its results any more
                hand_over(loaded, state_dict)
            return report

        return self._begin(work)

    def begin_ahead(self, state_dict: StateDict) -> Prefetch:
        """Load into memory of its own, like ``state_dict``."""
        ahead: dict[str, Any] = {}

        def work() -> Report:
            pinned: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
            ahead.update(_create_cpu_state_dict(resolved(in_order(state_dict)), pin_memory=pinned))
            return self._load(ahead)

        return Prefetch(self.reader, self._begin(work), ahead)

    def _begin(self, work: Callable[[], Report]) -> Operation[Report]:
        return Operation(work, turn=next_turn(self._process_group, no_dist=self._no_dist))

    def _load(self, state: dict[str, Any]) -> Report:
        with own_errors(alone=not uses_collectives(no_dist=self._no_dist)):
            dcp.load(
                state,
                storage_reader=self.reader,
                planner=self._planner,
                process_group=self._process_group,
                no_dist=self._no_dist,
            )
        assert self.reader.report is not None
        return self.reader.report


class Prefetch(Background):
    """A checkpoint on its way into memory of its own, to be taken over ``into`` the state dict when it is wanted.

    That memory is as large as this rank's tensors in the state dict, on the host (pinned, if CUDA is in use), and is
    held until ``into`` has copied it, or the object is let go. Awaiting it gives the load's report.
    """

    def __init__(self, reader: S3StorageReader, operation: Operation[Report], ahead: dict[str, Any]) -> None:
        super().__init__(reader, operation)
        self._ahead = ahead

    async def into(self, state_dict: StateDict) -> Report:
        """Wait until all has come and been verified, copy it into ``state_dict``, and free the memory.

        The state dict has the structure of the one that the prefetch was begun with. A cancelled wait leaves the
        prefetch alone; a cancelled copy leaves the state dict's contents undefined.

        Returns:
            the load's report.
        """
        report = await self
        await Operation(lambda: self._hand_over(state_dict)).settled()
        self._ahead = {}
        return report

    def _hand_over(self, state_dict: StateDict) -> None:
        targets = resolved(in_order(state_dict))
        with session():
            hand_over(_copied(self._ahead, targets), state_dict)


def _copied(loaded: dict[str, Any], targets: dict[str, Any]) -> dict[str, Any]:
    with torch.no_grad():
        return _copy_state_dict(loaded, targets, type_check=False)
