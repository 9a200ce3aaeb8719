"""The sweep: removes what killed writers left at a checkpoint's path or below a run's, and nothing else.

What may go is decided by ``remnants.judge``; here is what it has to know, and the removal. What has happened since the
first look is looked at once more right before anything of a checkpoint is removed: what both looks say may go, goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from http import HTTPStatus

from aiockpt.dcp.names import folders_above, is_data, is_metadata, is_temporary_metadata
from aiockpt.dcp.remnants import Remnant, Standing, Verdict, by_checkpoint, judge
from aiockpt.dcp.standing import metadata_at, read_standing
from aiockpt.engine.crew import run_all
from aiockpt.engine.engine import LoopEngine
from aiockpt.errors import AccessDenied, NotFound, ServiceError
from aiockpt.model import ObjectId
from aiockpt.s3.control import ListedObject, PendingUpload

#: For how long nothing may have happened to what a sweep removes: longer than any save takes, and than the storage,
#: network or credentials of one that is stuck and goes on afterwards stay away.
GRACE = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep removed (or would), and what it left although no metadata refer to it.

    Attributes:
        removed, kept: see there; the verdicts say why.
    """

    removed: Sequence[Verdict]
    kept: Sequence[Verdict]

    @property
    def nbytes(self) -> int:
        """Bytes of what was removed."""
        return sum(verdict.remnant.nbytes for verdict in self.removed)


async def sweep(
    engine: LoopEngine,
    path: ObjectId,
    *,
    grace: timedelta = GRACE,
    dry_run: bool = False,
    allowed_metadata_types: Iterable[type] = (),
) -> Swept:
    """Remove stale uploads, and data objects that no metadata refer to.

    Args:
        engine: performs it.
        path: a checkpoint, or a run: with no checkpoint's objects directly in it, each folder directly below is taken
            as a checkpoint of its own. ``s3://bucket`` is a run, too.
        grace: nothing of a checkpoint's folder is removed before everything there that is not committed is this old, by
            the service's clock. Longer than any save takes; zero says that nobody is saving there.
        dry_run: say what would go, and remove nothing.
        allowed_metadata_types: as ``S3StorageReader`` takes them; metadata that cannot be read protect their folder.

    Raises:
        AccessDenied: the credentials may not list, delete or abort here.
        ValueError: the grace is negative.

    Cancelled or failed, it has removed a part, and another sweep removes the rest.
    """
    if grace < timedelta(0):
        raise ValueError(f"the grace is a time span of zero or more, got {grace}")
    allowed = tuple(allowed_metadata_types)
    folder = f"{path.key.rstrip('/')}/" if path.key else ""
    found = await _look(engine, path.bucket, folder, allowed)
    removed: list[Verdict] = []
    kept: list[Verdict] = []
    for checkpoint, remnants in sorted(by_checkpoint(folder, found.metadata, found.remnants).items()):
        verdicts = judge(remnants, found.standing, grace, found.now)
        if not dry_run and any(verdict.goes for verdict in verdicts):
            verdicts = await _confirmed(engine, path.bucket, checkpoint, verdicts, grace, allowed)
            await run_all(partial(_remove, engine, path.bucket, v.remnant) for v in verdicts if v.goes)
        removed += [verdict for verdict in verdicts if verdict.goes]
        kept += [verdict for verdict in verdicts if not verdict.goes]
    return Swept(removed, kept)


async def _confirmed(
    engine: LoopEngine,
    bucket: str,
    checkpoint: str,
    verdicts: Sequence[Verdict],
    grace: timedelta,
    allowed: Iterable[type],
) -> list[Verdict]:
    """The verdicts of a second look, on what the first look found."""
    again = await _look(engine, bucket, checkpoint, allowed)
    known = {verdict.remnant.name for verdict in verdicts if verdict.goes}
    kept = [verdict for verdict in verdicts if not verdict.goes]
    second = judge(again.remnants, again.standing, grace, again.now)
    return kept + [verdict for verdict in second if verdict.remnant.name in known]


@dataclass(frozen=True, slots=True)
class _Look:
    """What stands below a folder at one time; ``standing`` also of the folders above it."""

    now: datetime | None
    metadata: Sequence[str]
    remnants: Sequence[Remnant]
    standing: Sequence[Standing]


async def _look(engine: LoopEngine, bucket: str, folder: str, allowed: Iterable[type]) -> _Look:
    """Look around: what time it is first, so that nothing seems older than it is, and metadata last."""
    now = await engine.service_time(bucket)
    objects, remnants = await _objects(engine, bucket, folder), await _uploads(engine, bucket, folder)
    metadata = {row.key for row in objects if is_metadata(row.key) or is_temporary_metadata(row.key)}
    remnants += [Remnant(row.key, row.size, row.last_modified) for row in objects if is_data(row.key)]
    hidden: list[Standing] = []
    for above in folders_above(folder):
        try:
            metadata.update(row.key for row in await metadata_at(engine, bucket, above, temporary=True))
        except AccessDenied as error:
            hidden.append(Standing(f"{above}.metadata", None, str(error)))
    standing = await read_standing(engine, bucket, sorted(metadata), allowed) if remnants else []
    return _Look(now, sorted(metadata), remnants, [*hidden, *standing])


async def _objects(engine: LoopEngine, bucket: str, folder: str) -> list[ListedObject]:
    return [row async for row in engine.list_objects(ObjectId(bucket, folder)) if not isinstance(row, str)]


async def _uploads(engine: LoopEngine, bucket: str, folder: str) -> list[Remnant]:
    """The pending uploads of a checkpoint's objects, each with the time of its latest part."""
    rows = [row async for row in engine.pending_uploads(ObjectId(bucket, folder))]
    found: list[Remnant] = []

    async def look(row: PendingUpload) -> None:
        try:
            parts = await engine.upload_parts(ObjectId(bucket, row.key), row.upload_id)
        except NotFound:  # completed or aborted meanwhile
            return
        except ServiceError as error:
            if error.status != HTTPStatus.INTERNAL_SERVER_ERROR:
                raise
            found.append(Remnant(row.key, 0, None, row.upload_id))  # what some stores answer of an aborted one
            return
        times = [part.last_modified for part in parts] or [row.initiated]
        touched = None if None in times else max(time for time in times if time is not None)
        found.append(Remnant(row.key, sum(part.size for part in parts), touched, row.upload_id))

    await run_all(partial(look, row) for row in rows if is_data(row.key) or is_metadata(row.key))
    return sorted(found, key=lambda remnant: (remnant.key, remnant.upload_id))


async def _remove(engine: LoopEngine, bucket: str, remnant: Remnant) -> None:
    target = ObjectId(bucket, remnant.key)
    if remnant.upload_id:
        await engine.abort_upload(target, remnant.upload_id)
    else:
        await engine.delete(target)
