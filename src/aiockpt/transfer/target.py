"""Where a checkpoint may go: a place without one, or one whose checkpoint is to be overwritten."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path

from aiockpt.dcp.delete import delete_checkpoint
from aiockpt.dcp.names import is_metadata
from aiockpt.engine.crew import run_all
from aiockpt.engine.engine import LoopEngine
from aiockpt.errors import AiockptError, MetadataError, NotFound, PreconditionFailed
from aiockpt.model import ObjectId
from aiockpt.transfer.contents import Contents, contents_of_folder

_HOW = "pass --overwrite to have them replaced, or choose another place"


async def prepare_bucket(engine: LoopEngine, base: ObjectId, contents: Contents, *, overwrite: bool) -> None:
    """See that nothing of a checkpoint is in the way of another; with ``overwrite``, delete what is.

    Metadata go first: nobody ever finds metadata there whose data are being replaced.

    Raises:
        PreconditionFailed: something is in the way.
    """
    folder = f"{base.key}/" if base.key else ""
    keys = [row.key async for row in engine.list_objects(ObjectId(base.bucket, folder)) if not isinstance(row, str)]
    metadata, data = _in_the_way([key.removeprefix(folder) for key in keys], contents)
    if not (metadata or data):
        return
    if not overwrite:
        raise PreconditionFailed(
            f"{base.uri} holds {_examples(metadata + data)} already: {_HOW}", bucket=base.bucket, key=base.key
        )
    with suppress(MetadataError, NotFound):  # damaged metadata do not say what is theirs: a sweep finds it
        await delete_checkpoint(engine, base)
    for paths in (metadata, data):
        await run_all(partial(engine.delete, base / path) for path in paths)


def prepare_folder(folder: Path, contents: Contents, *, overwrite: bool) -> None:
    """Likewise for a folder.

    Raises:
        FileExistsError: something is in the way.
    """
    found = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    metadata, data = _in_the_way(found, contents)
    if (metadata or data) and not overwrite:
        raise FileExistsError(f"{folder} holds {_examples(metadata + data)} already: {_HOW}")
    old: list[str] = []
    with suppress(AiockptError, FileNotFoundError):  # damaged metadata do not say what is theirs
        old = [file.path for file in contents_of_folder(folder).data]
    for path in dict.fromkeys(metadata + data + old):
        (folder / path).unlink()


def _in_the_way(found: list[str], contents: Contents) -> tuple[list[str], list[str]]:
    """Paths of the metadata that stand there, and of the data that have names of ours."""
    wanted = {file.path for file in contents.data}
    return [path for path in found if is_metadata(path)], [path for path in found if path in wanted]


def _examples(paths: list[str]) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(paths[:3]) + more
