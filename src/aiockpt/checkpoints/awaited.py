"""``Checkpoints``: a run's checkpoints for async programs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, TypeVar

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import LoadPlanner, SavePlanner

from aiockpt.awaitable.checkpoint_calls import OnProgress, StateDict
from aiockpt.awaitable.engine import Engine
from aiockpt.awaitable.operation import Operation
from aiockpt.awaitable.outcome import settle
from aiockpt.awaitable.turns import next_turn
from aiockpt.checkpoints.place import Place, vanished
from aiockpt.checkpoints.steps import Step
from aiockpt.dcp.sweep import GRACE, Swept
from aiockpt.engine.engine import LoopEngine
from aiockpt.errors import AiockptError, NotFound
from aiockpt.observe.report import Report
from aiockpt.scope import Scope

logger = logging.getLogger("aiockpt")

T = TypeVar("T")


class Checkpoints(Place):
    """A run's checkpoints, awaited on any loop; what is awaited happens on aiockpt's own, and ends when cancelled."""

    async def steps(self) -> list[Step]:
        """All steps, by number, complete or not: one LIST, and one more for each of them."""
        return await self._perform(self._run.steps)

    async def latest(self) -> Step | None:
        """The last complete step; None: there is none."""
        return await self._perform(self._run.latest)

    async def save(
        self,
        step: int,
        state_dict: StateDict,
        *,
        planner: SavePlanner | None = None,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> Report:
        """``aiockpt.save`` at a step, then ``prune``, which leaves this step alone; on all ranks.

        That something could not be pruned is logged and no failure of the save: the next one tries again.
        """
        report = await self._engine.save(
            state_dict,
            self.path(step),
            planner=planner,
            process_group=self._process_group,
            on_progress=on_progress,
            **options,
        )
        try:
            await self._prune(saved=step)
        except AiockptError as error:
            logger.warning("older checkpoints of %s could not be pruned: %s", self.uri, error)
        return report

    async def load(
        self,
        step: int | Step,
        state_dict: StateDict,
        *,
        planner: LoadPlanner | None = None,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> Report:
        """``aiockpt.load`` of a step, on all ranks."""
        return await self._engine.load(
            state_dict,
            self.path(step),
            planner=planner,
            process_group=self._process_group,
            on_progress=on_progress,
            **({"allowed_metadata_types": self._run.allowed_metadata_types} | options),
        )

    async def load_latest(self, state_dict: StateDict, **options: Any) -> Step:
        """Load the last complete step, the same one on all ranks: their first finds it and tells the others.

        When that step is deleted before it is loaded, the one that is the latest then is loaded. ``options`` are those
        of ``load``.

        Raises:
            NotFound: there is no complete checkpoint; says what there is instead.
        """
        failed: Step | None = None
        while True:
            turn = next_turn(self._process_group, no_dist=False)
            step = await Operation(self._find_latest, turn=turn).settled()
            try:
                await self.load(step, state_dict, **options)
            except (NotFound, CheckpointException) as error:
                if step == failed or not vanished(error):
                    raise
                logger.warning("%s was deleted before it was loaded: looking for the latest again", step.uri)
                failed = step
            else:
                return step

    async def delete(self, step: int | Step) -> None:
        """Delete a step, its metadata first: a reader finds it or not, and a load under way fails with ``NotFound``.

        Raises:
            NotFound: it is not there, or not complete: then it is for a sweep.
            PreconditionFailed: it was saved anew meanwhile, and stands.
        """
        if self.is_coordinator:
            await self._perform(lambda engine: self._run.delete(engine, step))

    async def prune(self) -> list[Step]:
        """Delete the complete steps that ``keep_last`` and ``keep_every`` do not keep; no folders that others named.

        Returns:
            what was deleted.
        """
        return await self._prune()

    async def _prune(self, saved: int | None = None) -> list[Step]:
        return await self._perform(lambda engine: self._run.prune(engine, saved)) if self.is_coordinator else []

    async def sweep(self, *, grace: timedelta = GRACE, dry_run: bool = False) -> Swept:
        """Remove what killed writers left in the steps' folders; see ``aiockpt.dcp.sweep``."""
        if not self.is_coordinator:
            return Swept((), ())
        return await self._perform(lambda engine: self._run.sweep(engine, grace, dry_run=dry_run))

    @property
    def _engine(self) -> Engine:
        return Engine(self._store.config, self._store.region)

    async def _perform(self, work: Callable[[LoopEngine], Coroutine[Any, Any, T]]) -> T:
        scope = Scope()
        with scope.entered():
            call = self._store.start(work)
        return await settle(call.outcome, scope)
