"""A run: what can be done with the checkpoints below one path, awaited on an engine.

Folders of the run whose name ends with a number are its steps, whoever named them. What is deleted for retention's sake
are only steps that have the run's own names.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from aiockpt.checkpoints.retention import Retention
from aiockpt.checkpoints.steps import Step, is_complete, name_of, what_is_there
from aiockpt.dcp.delete import delete_checkpoint
from aiockpt.dcp.names import METADATA, is_metadata, step_of
from aiockpt.dcp.sweep import Swept, sweep
from aiockpt.engine.crew import run_all
from aiockpt.engine.engine import LoopEngine
from aiockpt.errors import AiockptError, NotFound, PreconditionFailed
from aiockpt.model import ObjectId

logger = logging.getLogger("aiockpt")


@dataclass(frozen=True, slots=True)
class Run:
    """See the module.

    Attributes:
        base: the run's path, without a slash at its end.
        retention: which checkpoints stay.
        template: gives a step's folder its name.
        allowed_metadata_types: as ``S3StorageReader`` takes them.
    """

    base: ObjectId
    retention: Retention
    template: str
    allowed_metadata_types: Sequence[type] = ()

    def path(self, step: int | Step) -> ObjectId:
        """Where a step is, or would be."""
        return self.base / (step.name if isinstance(step, Step) else name_of(self.template, step))

    async def steps(self, engine: LoopEngine) -> list[Step]:
        """All steps, by number: one LIST, and one more for each of them."""
        found: list[Step] = []

        async def look(name: str) -> None:
            found.append(await self._look(engine, name))

        await run_all([partial(look, name) async for name in self._names(engine)])
        return sorted(found, key=lambda step: (step.step, step.name))

    async def latest(self, engine: LoopEngine) -> Step | None:
        """The last complete step; None: there is none."""
        names = sorted([name async for name in self._names(engine)], key=lambda name: (step_of(name) or 0, name))
        for name in reversed(names):
            step = await self._look(engine, name)
            if step.complete:
                return step
        return None

    async def require_latest(self, engine: LoopEngine) -> Step:
        """The last complete step.

        Raises:
            NotFound: there is none; says what there is instead.
        """
        step = await self.latest(engine)
        if step is None:
            there = what_is_there(self.base.uri, await self.steps(engine))
            raise NotFound(there, status=404, code="NoSuchKey", bucket=self.base.bucket, key=self.base.key)
        return step

    async def delete(self, engine: LoopEngine, step: int | Step) -> None:
        """Delete one step; see ``dcp.delete``."""
        await delete_checkpoint(engine, self.path(step), self.allowed_metadata_types)

    async def prune(self, engine: LoopEngine, saved: int | None = None) -> list[Step]:
        """Delete what is not kept, the oldest first; a step that cannot be deleted does not keep others from it.

        The step just ``saved`` stays, also where a training that went back to an earlier step has later ones.
        """
        if self.retention.keep_last is None:
            return []
        own = {
            step.step: step
            for step in await self.steps(engine)
            if step.complete and step.name == name_of(self.template, step.step)
        }
        if saved is not None and (later := [step.name for step in own.values() if step.step > saved]):
            logger.warning(
                "%s was saved beside later steps: load_latest loads %s, and keep_last counts them. Delete those that "
                "this training does not go on from",
                self.path(saved).uri,
                later[-1],
            )
        deleted: list[Step] = []
        failures: list[AiockptError] = []
        for number in self.retention.surplus(own, saved):
            try:
                await self.delete(engine, number)
                deleted.append(own[number])
            except (NotFound, PreconditionFailed):  # deleted or saved anew by someone else meanwhile
                continue
            except AiockptError as error:
                failures.append(error)
        if failures:
            raise failures[0]
        return deleted

    async def sweep(self, engine: LoopEngine, grace: timedelta, *, dry_run: bool) -> Swept:
        """Remove what killed writers left; see ``dcp.sweep``."""
        return await sweep(
            engine, self.base, grace=grace, dry_run=dry_run, allowed_metadata_types=self.allowed_metadata_types
        )

    async def _names(self, engine: LoopEngine) -> AsyncIterator[str]:
        """The folders of the run that are named after a step."""
        folder = self.base / "" if self.base.key else self.base
        async for row in engine.list_objects(folder, "/"):
            if isinstance(row, str) and step_of(name := row.removeprefix(folder.key).rstrip("/")) is not None:
                yield name

    async def _look(self, engine: LoopEngine, name: str) -> Step:
        """What a step's folder says; of a large one only as much is listed as is needed to know."""
        path, number = self.base / name, step_of(name)
        assert number is not None
        names: list[str] = []
        committed: datetime | None = None
        async with aclosing(engine.list_objects(path / "", "/")) as rows:
            async for row in rows:
                if isinstance(row, str):
                    continue
                names.append(row.key.rpartition("/")[2])
                if is_metadata(row.key):
                    committed = _later(committed, row.last_modified)
                if names[-1] == METADATA:
                    break
        complete = is_complete(names)
        return Step(number, name, path.uri, complete, committed if complete else None)


def _later(one: datetime | None, other: datetime | None) -> datetime | None:
    return max(filter(None, (one, other)), default=None)
