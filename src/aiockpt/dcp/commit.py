"""The commit protocol: what a bucket holds is the old checkpoint or the new one, at every instant.

Readers start from ``.metadata``, so one PUT of it, after all data, is the commit. For the old checkpoint to stay whole
until then, a save never writes over data: it looks first which numbers its objects' names have used and goes on from
there. After the commit the objects that only the old metadata knew are deleted; a writer that is killed before that
leaves objects nobody refers to, which a sweep removes.

Two writers at one path: their data objects never replace anything, and decide nothing: what finds its number taken is
written under another one (``rounds``). Their metadata may replace nothing but what they saw when they began. So where
the store knows conditional writes, the first one to commit wins, whatever happens in between and whoever is killed; the
others fail with ``PreconditionFailed`` and take their data away again.

A sweep may take a writer for dead who was only stopped for longer than its grace. So who has been at it for long looks
whether its data still stand before it commits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

from aiockpt.dcp.names import data_number, folder_of
from aiockpt.dcp.recent import Recent
from aiockpt.dcp.standing import data_of
from aiockpt.engine.crew import run_all
from aiockpt.engine.engine import LoopEngine
from aiockpt.errors import MetadataError, NotFound, PreconditionFailed, S3Exception
from aiockpt.model import NOTHING, ObjectId, Replaces

logger = logging.getLogger("aiockpt")

#: From so many seconds on a save looks whether its data still stand before it commits: far below any grace of a sweep,
#: and the look, a listing, is then nothing beside the save.
LONG_S = 600.0

#: What this process has committed: by the bucket's URL, the metadata's key and ETag, the keys of its data. So a
#: checkpoint that replaces one of our own need not read the old metadata, which takes 0.2 s for 20,000 tensors.
_committed: Recent[tuple[str, str, str], frozenset[str]] = Recent()


@dataclass(frozen=True, slots=True)
class Survey:
    """What a rank found at a checkpoint's path before it saved there.

    Attributes:
        replaces: the metadata that stands there, as a condition for the commit.
        prefix: what names of the rank's data objects begin with.
        next_number: the first number that no such name has used.
        looked: the ``readings`` when it began.
    """

    replaces: Replaces
    prefix: ObjectId
    next_number: int
    looked: tuple[float, float]

    @property
    def exists(self) -> bool:
        """Whether a complete checkpoint is there already."""
        return not self.replaces.nothing

    def lost_to(self, later: Survey) -> bool:
        """Whether another writer has committed since, seen by a later look: what was surveyed can be replaced no more.

        That what stood was deleted is no loss: then there is nothing to replace.
        """
        return later.exists and later.replaces != self.replaces

    def age_s(self) -> float:
        """Seconds since it was made."""
        return max(now - then for now, then in zip(readings(), self.looked, strict=True))


def readings() -> tuple[float, float]:
    """Two clocks, in seconds: one that goes on while the machine is suspended, and one that nobody sets back."""
    return time.time(), time.monotonic()


def lost(metadata: ObjectId) -> PreconditionFailed:
    """The error of who finds that another writer has committed."""
    where = ObjectId(metadata.bucket, folder_of(metadata.key)).uri
    return PreconditionFailed(
        f"another writer saved to {where} meanwhile, and its checkpoint stands",
        status=412, code="PreconditionFailed", bucket=metadata.bucket, key=metadata.key,
    )  # fmt: skip


async def survey(engine: LoopEngine, metadata: ObjectId, prefix: ObjectId) -> Survey:
    """Look what stands at a checkpoint's path: its metadata, and data objects whose key starts with ``prefix``."""
    looked = readings()
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
        used = (data_number(key, prefix.key) for key in keys)
        numbers.extend(number for number in used if number is not None)

    await run_all([look_for_metadata, look_for_data])
    return Survey(found[0], prefix, max(numbers) + 1, looked)


async def replaced_data(engine: LoopEngine, found: Survey, metadata: ObjectId) -> frozenset[str]:
    """Keys of the objects that the standing metadata refer to, to be read while the new data are written.

    No keys if they cannot be read: a sweep has to find them then.
    """
    if not found.exists:
        return frozenset()
    own = _committed.get((await engine.bucket_url(metadata.bucket), metadata.key, found.replaces.etag))
    if own is not None:
        return own
    try:
        return await data_of(engine, metadata)
    except (MetadataError, NotFound) as error:
        logger.warning("what the replaced checkpoint leaves behind is not deleted: %s", error)
        return frozenset()


async def commit(
    engine: LoopEngine, found: Survey, metadata: ObjectId, data: bytes, kept: Collection[str], replaced: Collection[str]
) -> None:
    """Make the new metadata stand, then delete the data that only the replaced ones referred to.

    Args:
        engine: performs it.
        found: the survey of before the save.
        metadata: where the metadata lie.
        data: the new metadata's bytes.
        kept: keys of the objects that they refer to.
        replaced: see ``replaced_data``.

    Raises:
        PreconditionFailed: another writer has committed here since the survey; its checkpoint stands, and the data that
            were to be committed have been deleted.
        NotFound: the save took long, and some of its data are gone; nothing has changed.
    """
    if found.age_s() >= LONG_S:
        await _must_all_stand(engine, metadata, kept)
    try:
        etag = await _put(engine, metadata, data, found.replaces)
    except PreconditionFailed:
        await withdraw(engine, metadata, kept)
        raise
    _remember(await engine.bucket_url(metadata.bucket), metadata.key, etag, kept)
    await _delete_all(engine, metadata.bucket, set(replaced).difference(kept))


async def _must_all_stand(engine: LoopEngine, metadata: ObjectId, keys: Collection[str]) -> None:
    folder = ObjectId(metadata.bucket, folder_of(metadata.key))
    there = {row.key async for row in engine.list_objects(folder) if not isinstance(row, str)}
    if gone := sorted(set(keys) - there):
        raise NotFound(
            f"{len(gone)} of {len(keys)} data objects of this save are gone, {ObjectId(folder.bucket, gone[0]).uri} "
            "for one: a sweep whose grace is shorter than this save took has removed them. Nothing was committed: "
            "save again, and sweep with a longer grace",
            status=404, code="NoSuchKey", bucket=folder.bucket, key=gone[0],
        )  # fmt: skip


async def withdraw(engine: LoopEngine, metadata: ObjectId, keys: Collection[str]) -> None:
    """Delete the data of a save that has lost its path to another writer, except for what standing metadata refer to.

    What cannot be deleted is logged and left to a sweep. None is deleted again that may be gone: its name is free then,
    and may be another's.
    """
    if not keys:
        return
    try:
        standing = await data_of(engine, metadata)
    except NotFound:
        standing = frozenset()
    except (MetadataError, S3Exception) as error:
        logger.warning("the data of a save that lost to another writer are left behind: %s", error)
        return
    await _delete_all(engine, metadata.bucket, set(keys).difference(standing), once=True)


async def _delete_all(engine: LoopEngine, bucket: str, keys: Collection[str], *, once: bool = False) -> None:
    await run_all(partial(_delete, engine, ObjectId(bucket, key), once=once) for key in sorted(keys))


def _remember(bucket_url: str, key: str, etag: str, data: Collection[str]) -> None:
    if etag:  # some stores leave it out
        _committed.note((bucket_url, key, etag), frozenset(data))


async def _put(engine: LoopEngine, metadata: ObjectId, data: bytes, replaces: Replaces) -> str:
    """Write the metadata; if those that they replace were deleted meanwhile, there is nothing to replace.

    Returns:
        their ETag.
    """
    try:
        return (await engine.put(metadata, [data], replaces)).etag
    except (NotFound, PreconditionFailed) as error:
        if replaces.etag and not await engine.exists(metadata):
            return await _put(engine, metadata, data, NOTHING)
        if isinstance(error, PreconditionFailed):
            error.args = (f"{error.args[0]}: {lost(metadata).args[0]}",)
        raise


async def _delete(engine: LoopEngine, target: ObjectId, *, once: bool) -> None:
    try:
        await engine.delete(target, once=once)
    except S3Exception as error:
        logger.warning("%s may be left behind, with no metadata that refer to it: %s", target.uri, error)
