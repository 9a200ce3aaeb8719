"""The commit protocol: what a bucket holds is the old checkpoint or the new one, at every instant.

Readers start from ``.metadata``, so one PUT of it, after all data, is the commit. For the old checkpoint to stay whole
until then, a save never writes over data: it looks first which numbers its objects' names have used and goes on from
there. After the commit the objects that only the old metadata knew are deleted; a writer that is killed before that
leaves objects nobody refers to, which a sweep removes.

Two writers at one path: their data objects must not replace anything, nor may their metadata replace anything but what
they saw when they began, so one of them fails with ``PreconditionFailed`` where the store knows conditional writes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

from aiockpt.dcp.metadata import load_metadata
from aiockpt.engine.crew import run_all
from aiockpt.engine.engine import Engine
from aiockpt.errors import MetadataError, NotFound, PreconditionFailed, S3Exception
from aiockpt.model import NOTHING, ObjectId, Replaces

logger = logging.getLogger("aiockpt")

_NUMBERED = re.compile(r"(\d{1,18})\.distcp")


@dataclass(frozen=True, slots=True)
class Survey:
    """What a rank found at a checkpoint's path before it saved there.

    Attributes:
        replaces: the metadata that stands there, as a condition for the commit.
        exists: whether there is any: a complete checkpoint.
        prefix: what names of the rank's data objects begin with.
        next_number: the first number that no such name has used.
    """

    replaces: Replaces
    prefix: ObjectId
    next_number: int

    @property
    def exists(self) -> bool:
        """Whether a complete checkpoint is there already."""
        return not self.replaces.nothing


async def survey(engine: Engine, metadata: ObjectId, prefix: ObjectId) -> Survey:
    """Look what stands at a checkpoint's path: its metadata, and data objects whose key starts with ``prefix``."""
    found: list[Replaces] = []
    numbers = [-1]

    async def look_for_metadata() -> None:
        try:
            found.append(Replaces(etag=(await engine.head(metadata)).etag))
        except NotFound as error:
            if error.code == "NoSuchBucket":
                raise
            found.append(NOTHING)

    async def look_for_data() -> None:
        keys = [row.key async for row in engine.list_objects(prefix) if not isinstance(row, str)]
        names = (_NUMBERED.fullmatch(key.removeprefix(prefix.key)) for key in keys)
        numbers.extend(int(name[1]) for name in names if name)

    await run_all([look_for_metadata, look_for_data])
    return Survey(found[0], prefix, max(numbers) + 1)


async def commit(
    engine: Engine, found: Survey, metadata: ObjectId, base: ObjectId, data: bytes, paths: Collection[str]
) -> None:
    """Make the new metadata stand, then delete the data that only the replaced ones referred to.

    Args:
        engine: performs it.
        found: the survey of before the save.
        metadata: where the metadata lie.
        base: the checkpoint: its objects' paths are below.
        data: the new metadata's bytes.
        paths: the objects that they refer to.

    Raises:
        PreconditionFailed: another writer has committed here since the survey; its checkpoint stands.
    """
    replaced = await _paths(engine, metadata) if found.exists else set()
    try:
        await engine.put(metadata, [data], found.replaces)
    except PreconditionFailed as error:
        error.args = (f"{error.args[0]}: another writer saved to {base.uri} meanwhile, and its checkpoint stands",)
        raise
    await run_all(partial(_delete, engine, base / path) for path in sorted(replaced.difference(paths)))


async def _paths(engine: Engine, metadata: ObjectId) -> set[str]:
    """The objects that standing metadata refer to; none if they cannot be read, then a sweep has to find them."""
    try:
        data, _ = await engine.get_small(metadata)
        return {place.relative_path for place in (load_metadata(data, metadata.uri).storage_data or {}).values()}
    except (MetadataError, NotFound) as error:
        logger.warning("what the replaced checkpoint leaves behind is not deleted: %s", error)
        return set()


async def _delete(engine: Engine, target: ObjectId) -> None:
    try:
        await engine.delete(target)
    except S3Exception as error:
        logger.warning("an object of the replaced checkpoint is left behind: %s", error)
