"""Saves: awaited, or in the background as one object."""

from __future__ import annotations

import concurrent.futures
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.planner import SavePlanner
from torch.distributed.checkpoint.staging import AsyncStager

from aiockpt.awaitable.at_exit import see_through_at_exit
from aiockpt.awaitable.background import Background
from aiockpt.awaitable.checkpoint_calls import StateDict, checkpoint_at, own_errors, resolved
from aiockpt.awaitable.operation import Operation
from aiockpt.awaitable.outcome import Pending
from aiockpt.awaitable.turns import next_turn, uses_collectives
from aiockpt.blocking.store import Store
from aiockpt.dcp.background import background_thread
from aiockpt.dcp.s3_file_system import S3StorageWriter
from aiockpt.observe.report import Report
from aiockpt.scope import Scope

logger = logging.getLogger("aiockpt")


class SaveCall:
    """A save with all its arguments: checked, not begun.

    Args:
        store: the settings of the engine that performs it.
        state_dict, uri, planner, process_group, no_dist: see ``aiockpt.save``.
        options: further arguments of ``S3StorageWriter``.

    Raises:
        ConfigError: ``uri`` is none of S3.
        TypeError: an option that there is not.
    """

    def __init__(
        self,
        store: Store,
        state_dict: StateDict,
        uri: str | os.PathLike[str],
        *,
        planner: SavePlanner | None,
        process_group: dist.ProcessGroup | None,
        no_dist: bool,
        options: Mapping[str, Any],
    ) -> None:
        self.uri = checkpoint_at(uri)
        self.writer = S3StorageWriter(cast("str", store.region), self.uri, store.config, **options)
        self._state_dict = state_dict
        self._planner = planner
        self._process_group = process_group
        self._no_dist = no_dist

    def begin(self) -> Operation[Report]:
        """Save from the tensors' own memory."""
        return self._begin(lambda: self._save(resolved(self._state_dict)))

    def begin_in_background(self, *, copy: bool, stager: AsyncStager | None) -> BackgroundSave:
        """Save while the caller goes on; ``copy``: of copies, made first."""
        staged: concurrent.futures.Future[None] = concurrent.futures.Future()

        def work() -> Report:
            state = resolved(self._state_dict)
            if copy:
                state = _waited_for((stager or self.writer).stage(state))
                staged.set_result(None)
            with background_thread():
                return self._save(state)

        operation = self._begin(work)
        operation.outcome.add_done_callback(partial(_tell_end, self.uri, operation.scope, staged))
        save = BackgroundSave(self.writer, operation, staged)
        see_through_at_exit(save)
        return save

    def _begin(self, work: Callable[[], Report]) -> Operation[Report]:
        return Operation(work, turn=next_turn(self._process_group, no_dist=self._no_dist))

    def _save(self, state: dict[str, Any]) -> Report:
        with own_errors(alone=not uses_collectives(no_dist=self._no_dist)):
            dcp.save(
                state,
                storage_writer=self.writer,
                planner=self._planner,
                process_group=self._process_group,
                no_dist=self._no_dist,
            )
        assert self.writer.report is not None
        return self.writer.report


class BackgroundSave(Background):
    """A save that goes on while the trainer does: await it, or wait for its ``result``, for its report.

    It goes on when the loop closes, and at exit the interpreter waits for it: whoever wants it ended, cancels it. A
    failure is logged as it happens, and a RuntimeWarning tells of one that nobody has looked at.

    Attributes:
        staged: to be awaited (or waited for with ``staged.result()``) before tensors are changed: from then on the save
            does not look at them any more.
    """

    def __init__(
        self, writer: S3StorageWriter, operation: Operation[Report], staged: concurrent.futures.Future[None]
    ) -> None:
        super().__init__(writer, operation)
        self.staged = Pending(staged)
        self._uri = writer.path

    def __del__(self) -> None:
        if not self._looked_at and self.done and not self.cancelled and (error := self._outcome.exception()):
            warnings.warn(
                f"the background save of {self._uri} failed, and nobody has looked: {type(error).__name__}: {error}",
                RuntimeWarning,
                source=self,
                stacklevel=1,
            )


def _tell_end(
    uri: str,
    scope: Scope,
    staged: concurrent.futures.Future[None],
    outcome: concurrent.futures.Future[Report],
) -> None:
    """A background save is over: whoever waits for its staging must not wait for ever, and a failure must be seen."""
    error = outcome.exception()
    if error is not None and not scope.cancelled:
        logger.error("the background save of %s failed: %s: %s", uri, type(error).__name__, error)
    if staged.done():
        return
    if error is not None:
        staged.set_exception(error)
    else:
        staged.set_result(None)


def _waited_for(staged: Any) -> dict[str, Any]:
    """What a stager has staged; some stagers give a future."""
    return cast("dict[str, Any]", staged.result() if isinstance(staged, concurrent.futures.Future) else staged)
