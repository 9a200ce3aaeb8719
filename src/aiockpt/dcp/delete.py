"""Deleting a checkpoint: its metadata first, so that no reader ever finds half of one, then what they referred to.

What no metadata refer to is not touched: it is a sweep's, or a running save's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from aiockpt.dcp.standing import data_of, metadata_at
from aiockpt.engine.crew import run_all
from aiockpt.engine.engine import LoopEngine
from aiockpt.engine.standing import learn_conditions
from aiockpt.errors import NotFound, PreconditionFailed
from aiockpt.model import ObjectId
from aiockpt.s3.control import ListedObject


@dataclass(frozen=True, slots=True)
class Contents:
    """The objects of a checkpoint.

    Attributes:
        metadata: those of ranks first, the checkpoint's own last.
        data: keys of what they refer to, sorted.
    """

    metadata: Sequence[ListedObject]
    data: Sequence[str]


async def contents_of(
    engine: LoopEngine, checkpoint: ObjectId, allowed_metadata_types: Iterable[type] = ()
) -> Contents:
    """What a checkpoint consists of.

    Raises:
        NotFound: there is no complete checkpoint.
        MetadataError: its metadata are damaged, or refused.
    """
    bucket, folder = checkpoint.bucket, f"{checkpoint.key.rstrip('/')}/" if checkpoint.key else ""
    rows = await metadata_at(engine, bucket, folder)
    if not rows:
        raise NotFound(
            f"there is no complete checkpoint at {checkpoint.uri}; what killed writers left there is for a sweep",
            status=404, code="NoSuchKey", bucket=bucket, key=f"{folder}.metadata",
        )  # fmt: skip
    data: set[str] = set()

    async def read(row: ListedObject) -> None:
        data.update(await data_of(engine, ObjectId(bucket, row.key), allowed_metadata_types))

    await run_all(partial(read, row) for row in rows)
    return Contents(sorted(rows, key=lambda row: (row.key == f"{folder}.metadata", row.key)), sorted(data))


async def delete_checkpoint(
    engine: LoopEngine, checkpoint: ObjectId, allowed_metadata_types: Iterable[type] = ()
) -> Contents:
    """Delete a checkpoint; a load of it that is under way fails with ``NotFound`` and never reads a mixture.

    Returns:
        What was deleted.

    Raises:
        NotFound: there is no complete checkpoint.
        MetadataError: its metadata are damaged or refused, so nobody knows what is its: nothing is deleted.
        PreconditionFailed: a save has replaced it meanwhile; the new one stands.

    Cancelled or failed after the metadata are gone, it leaves data that a sweep removes.
    """
    found = await contents_of(engine, checkpoint, allowed_metadata_types)
    for row in found.metadata:
        await _delete_unchanged(engine, ObjectId(checkpoint.bucket, row.key), row.etag)
    await run_all(partial(_delete, engine, ObjectId(checkpoint.bucket, key)) for key in found.data)
    return found


async def _delete(engine: LoopEngine, data: ObjectId) -> None:
    """Delete data that no metadata refer to; before that, one of them tells what the store makes of conditions."""
    await learn_conditions(engine, data)
    await engine.delete(data)


async def _delete_unchanged(engine: LoopEngine, target: ObjectId, etag: str) -> None:
    """Delete an object if it has this ETag still: few stores know conditional deletes, so it is looked at."""
    try:
        info = await engine.head(target)
    except NotFound:
        return
    if info.etag != etag:
        raise PreconditionFailed(
            f"{target.uri} was replaced by another save meanwhile, which stands; delete again if it is to go, too",
            status=412, code="PreconditionFailed", bucket=target.bucket, key=target.key,
        )  # fmt: skip
    await engine.delete(target)
