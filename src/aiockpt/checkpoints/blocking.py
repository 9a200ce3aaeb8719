"""``BlockingCheckpoints``: a run's checkpoints for trainers that are no async programs."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import LoadPlanner, SavePlanner

from aiockpt.checkpoints.place import Place, vanished
from aiockpt.checkpoints.steps import Step
from aiockpt.dcp.sweep import GRACE, Swept
from aiockpt.errors import AiockptError
from aiockpt.observe.report import Report

logger = logging.getLogger("aiockpt")

T = TypeVar("T")


class BlockingCheckpoints(Place):
    """A run's checkpoints, blocking; the same as ``Checkpoints``, whose arguments it takes."""

    def steps(self) -> list[Step]:
        """All steps, by number, complete or not."""
        return self._store.run(self._run.steps)

    def latest(self) -> Step | None:
        """The last complete step; None: there is none."""
        return self._store.run(self._run.latest)

    def save(
        self,
        step: int,
        state_dict: dict[str, Any],
        *,
        planner: SavePlanner | None = None,
        **options: Any,
    ) -> Report | None:
        """``dcp.save`` at a step, then ``prune``, which leaves this step alone; on all ranks.

        That something could not be pruned is logged and no failure of the save: the next one tries again.

        Returns:
            what this rank's save did.

        Raises:
            CheckpointException: DCP's, with what failed by rank.
        """
        writer = self.writer(step, **options)
        dcp.save(state_dict, storage_writer=writer, planner=planner, process_group=self._process_group)
        try:
            self._prune(saved=step)
        except AiockptError as error:
            logger.warning("older checkpoints of %s could not be pruned: %s", self.uri, error)
        return writer.report

    def load(
        self, step: int | Step, state_dict: dict[str, Any], *, planner: LoadPlanner | None = None, **options: Any
    ) -> Report | None:
        """``dcp.load`` of a step, on all ranks.

        Returns:
            what this rank's load did.

        Raises:
            CheckpointException: DCP's, with what failed by rank.
        """
        reader = self.reader(step, **options)
        dcp.load(state_dict, storage_reader=reader, planner=planner, process_group=self._process_group)
        return reader.report

    def load_latest(self, state_dict: dict[str, Any], *, planner: LoadPlanner | None = None, **options: Any) -> Step:
        """Load the last complete step, the same one on all ranks: their first finds it and tells the others.

        When that step is deleted before it is loaded, the one that is the latest then is loaded.

        Returns:
            which one it was.

        Raises:
            NotFound: there is no complete checkpoint; says what there is instead.
            CheckpointException: DCP's, with what failed by rank.
        """
        failed: Step | None = None
        while True:
            step = self._find_latest()
            try:
                self.load(step, state_dict, planner=planner, **options)
            except CheckpointException as error:
                if step == failed or not vanished(error):
                    raise
                logger.warning("%s was deleted before it was loaded: looking for the latest again", step.uri)
                failed = step
            else:
                return step

    def delete(self, step: int | Step) -> None:
        """Delete a step, its metadata first: a reader finds it or not, and a load under way fails with ``NotFound``.

        Raises:
            NotFound: it is not there, or not complete: then it is for a sweep.
            PreconditionFailed: it was saved anew meanwhile, and stands.
        """
        if self.is_coordinator:
            self._store.run(lambda engine: self._run.delete(engine, step))

    def prune(self) -> list[Step]:
        """Delete the complete steps that ``keep_last`` and ``keep_every`` do not keep; no folders that others named.

        Returns:
            what was deleted.
        """
        return self._prune()

    def _prune(self, saved: int | None = None) -> list[Step]:
        return self._store.run(lambda engine: self._run.prune(engine, saved)) if self.is_coordinator else []

    def sweep(self, *, grace: timedelta = GRACE, dry_run: bool = False) -> Swept:
        """Remove what killed writers left in the steps' folders; see ``aiockpt.dcp.sweep``."""
        if not self.is_coordinator:
            return Swept((), ())
        return self._store.run(lambda engine: self._run.sweep(engine, grace, dry_run=dry_run))
