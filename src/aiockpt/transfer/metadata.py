"""A checkpoint's metadata, fetched and loaded safely, from a bucket or from a folder."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from torch.distributed.checkpoint.metadata import Metadata

from aiockpt.dcp.metadata import load_metadata
from aiockpt.engine.crew import run_all
from aiockpt.engine.engine import Engine
from aiockpt.errors import NotFound
from aiockpt.inspection.names import METADATA, is_rank_metadata
from aiockpt.model import ObjectId

#: A checkpoint's metadata by name: one ``.metadata``, or one of each rank.
MetadataByName = dict[str, Metadata]


async def read_metadata(engine: Engine, base: ObjectId) -> MetadataByName:
    """The metadata of a checkpoint in a bucket.

    Raises:
        NotFound: there is no complete checkpoint.
        MetadataError: it is damaged, or refused because loading it could run code.
    """
    try:
        return await read_all(engine, [base / METADATA])
    except NotFound as error:
        if error.code == "NoSuchBucket" or not (ranks := await _rank_metadata(engine, base)):
            error.args = (f"there is no complete checkpoint at {base.uri}: {error.args[0]}",)
            raise
        return await read_all(engine, ranks)


async def read_all(engine: Engine, targets: Iterable[ObjectId]) -> MetadataByName:
    """Metadata objects by their names, fetched together."""
    fetched: dict[str, Metadata] = {}

    async def fetch(target: ObjectId) -> None:
        data, _ = await engine.get_small(target)
        fetched[target.key.rpartition("/")[2]] = load_metadata(data, target.uri)

    await run_all(partial(fetch, target) for target in targets)
    return fetched


async def _rank_metadata(engine: Engine, base: ObjectId) -> list[ObjectId]:
    rows = [row async for row in engine.list_objects(base / "__", delimiter="/")]
    keys = (row.key for row in rows if not isinstance(row, str))
    return [ObjectId(base.bucket, key) for key in keys if is_rank_metadata(key.rpartition("/")[2])]


def read_local_metadata(folder: Path) -> MetadataByName:
    """The metadata of a checkpoint in a folder.

    Raises:
        FileNotFoundError: there is no complete checkpoint.
        MetadataError: it is damaged, or refused because loading it could run code.
    """
    paths = [folder / METADATA] if (folder / METADATA).exists() else sorted(folder.glob("__*.metadata"))
    paths = [path for path in paths if path.name == METADATA or is_rank_metadata(path.name)]
    if not paths:
        raise FileNotFoundError(f"there is no complete checkpoint at {folder}")
    return {path.name: load_metadata(path.read_bytes(), str(path)) for path in paths}
