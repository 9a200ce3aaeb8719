"""``Checkpoints``: a run's checkpoints for async programs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, TypeVar

from aiockpt.checkpoints.place import Place
from aiockpt.checkpoints.steps import Step
from aiockpt.dcp.sweep import GRACE, Swept
from aiockpt.engine.engine import Engine

T = TypeVar("T")


class Checkpoints(Place):
    """A run's checkpoints, awaited on any loop; what is awaited happens on aiockpt's own, and ends when cancelled."""

    async def steps(self) -> list[Step]:
        """All steps, by number, complete or not: one LIST, and one more for each of them."""
        return await self._perform(self._run.steps)

    async def latest(self) -> Step | None:
        """The last complete step; None: there is none."""
        return await self._perform(self._run.latest)

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
        return await self._perform(self._run.prune) if self.is_coordinator else []

    async def sweep(self, *, grace: timedelta = GRACE, dry_run: bool = False) -> Swept:
        """Remove what killed writers left in the steps' folders; see ``aiockpt.dcp.sweep``."""
        if not self.is_coordinator:
            return Swept((), ())
        return await self._perform(lambda engine: self._run.sweep(engine, grace, dry_run=dry_run))

    async def _perform(self, work: Callable[[Engine], Coroutine[Any, Any, T]]) -> T:
        call = self._store.start(work)
        try:
            return await asyncio.shield(asyncio.wrap_future(call.outcome))
        except asyncio.CancelledError:
            call.cancel()
            raise
