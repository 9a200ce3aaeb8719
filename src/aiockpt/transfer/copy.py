"""A checkpoint copied within one store, by the service itself: no byte of its data comes here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from aiockpt.engine.crew import run_all
from aiockpt.engine.engine import LoopEngine
from aiockpt.errors import ObjectChanged
from aiockpt.model import NOTHING, ObjectId
from aiockpt.transfer.contents import Contents, DataFile
from aiockpt.transfer.metadata import fetch_metadata


async def copy(
    engine: LoopEngine, source: ObjectId, contents: Contents, target: ObjectId, on_bytes: Callable[[int], object]
) -> None:
    """Copy a checkpoint to ``target``, which ``target.prepare_bucket`` has found free or made so.

    A failure or cancellation leaves no upload and no metadata there; data objects that stand already stay.

    Args:
        engine: reaches both places.
        source: the checkpoint.
        contents: of it.
        target: the new one.
        on_bytes: told of the sizes of objects that have been copied, on the loop thread.

    Raises:
        ObjectChanged: another checkpoint was saved over the source meanwhile.
        PreconditionFailed: another writer has committed at the target.
    """

    async def copy_one(file: DataFile) -> None:
        await engine.copy(source / file.path, target / file.path)
        on_bytes(file.nbytes)

    await run_all(partial(copy_one, file) for file in contents.data)
    if await fetch_metadata(engine, source) != contents.metadata:
        raise ObjectChanged(f"{source.uri} was saved over while it was copied: nothing was committed; copy again")
    for name, data in contents.metadata.items():
        await engine.put(target / name, [data], NOTHING)
