"""A checkpoint's metadata, fetched and loaded safely, from a bucket or from a folder."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from torch.distributed.checkpoint.metadata import Metadata

from aiockpt.dcp.metadata import load_metadata
from aiockpt.dcp.names import METADATA, is_rank_metadata
from aiockpt.engine.crew import run_all
from aiockpt.engine.engine import LoopEngine
from aiockpt.errors import NotFound
from aiockpt.model import ObjectId

#: A checkpoint's metadata by name: one ``.metadata``, or one of each rank.
MetadataByName = dict[str, Metadata]


async def read_metadata(engine: LoopEngine, base: ObjectId) -> MetadataByName:
    """The metadata of a checkpoint in a bucket.

    Raises:
        NotFound: there is no complete checkpoint.
        MetadataError: it is damaged, or refused because loading it could run code.
    """
    fetched = await fetch_metadata(engine, base)
    return {name: load_metadata(data, (base / name).uri) for name, data in fetched.items()}


async def fetch_metadata(engine: LoopEngine, base: ObjectId) -> dict[str, bytes]:
    """Likewise, as stored: nothing is loaded."""
    try:
        return await _fetch_all(engine, [base / METADATA])
    except NotFound as error:
        if error.code == "NoSuchBucket" or not (ranks := await _rank_metadata(engine, base)):
            why = error.args[0] if error.code == "NoSuchBucket" else "aiockpt ls lists those below a prefix"
            error.args = (f"there is no complete checkpoint at {base.uri}: {why}",)
            raise
        return await _fetch_all(engine, ranks)


async def _fetch_all(engine: LoopEngine, targets: Iterable[ObjectId]) -> dict[str, bytes]:
    """Metadata objects by their names, fetched together."""
    fetched: dict[str, bytes] = {}

    async def fetch(target: ObjectId) -> None:
        fetched[target.key.rpartition("/")[2]], _ = await engine.get_small(target)

    await run_all(partial(fetch, target) for target in targets)
    return fetched


async def load(engine: LoopEngine, target: ObjectId) -> Metadata:
    """One metadata object.

    Raises:
        NotFound, MetadataError: as ``read_metadata``.
    """
    data, _ = await engine.get_small(target)
    return load_metadata(data, target.uri)


async def _rank_metadata(engine: LoopEngine, base: ObjectId) -> list[ObjectId]:
    rows = [row async for row in engine.list_objects(base / "__", delimiter="/")]
    keys = (row.key for row in rows if not isinstance(row, str))
    return [ObjectId(base.bucket, key) for key in keys if is_rank_metadata(key)]


def read_local_metadata(folder: Path) -> MetadataByName:
    """The metadata of a checkpoint in a folder.

    Raises:
        FileNotFoundError: there is no complete checkpoint.
        MetadataError: it is damaged, or refused because loading it could run code.
    """
    return {path.name: load_metadata(path.read_bytes(), str(path)) for path in local_metadata_paths(folder)}


def local_metadata_paths(folder: Path) -> list[Path]:
    """The files with the metadata of the checkpoint in a folder.

    Raises:
        FileNotFoundError: there is no complete checkpoint.
    """
    if (folder / METADATA).is_file():
        return [folder / METADATA]
    ranks = [path for path in sorted(folder.glob("__*.metadata")) if is_rank_metadata(path.name)]
    if not ranks:
        raise FileNotFoundError(f"there is no complete checkpoint at {folder}")
    return ranks
