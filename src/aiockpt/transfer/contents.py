"""Which objects or files a checkpoint consists of: what is to be moved, and where it may be moved to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from aiockpt.dcp.metadata import load_metadata
from aiockpt.dcp.names import is_metadata
from aiockpt.engine.engine import LoopEngine
from aiockpt.errors import MetadataError, ShortRead
from aiockpt.inspection.summary import Summary, summarize
from aiockpt.model import ObjectId
from aiockpt.transfer.metadata import fetch_metadata, local_metadata_paths


@dataclass(frozen=True, slots=True)
class DataFile:
    """An object or file with a checkpoint's data.

    Attributes:
        path: below the checkpoint.
        nbytes: its size.
        etag: of an object; "" of a file.
    """

    path: str
    nbytes: int
    etag: str = ""


@dataclass(frozen=True, slots=True)
class Contents:
    """A whole checkpoint.

    Attributes:
        metadata: by name, as stored: moved last, and unchanged.
        data: what they refer to, and nothing else that lies there.
    """

    metadata: Mapping[str, bytes]
    data: Sequence[DataFile]

    @property
    def nbytes(self) -> int:
        """Of all data."""
        return sum(file.nbytes for file in self.data)


async def contents_of_bucket(engine: LoopEngine, base: ObjectId) -> Contents:
    """What the checkpoint at ``base`` consists of.

    Raises:
        NotFound: there is no complete checkpoint.
        MetadataError: its metadata are damaged or refused, or refer to objects that are not there.
        ShortRead: an object is shorter than they say.
    """
    metadata = await fetch_metadata(engine, base)
    folder = f"{base.key}/" if base.key else ""
    found: dict[str, DataFile] = {}
    async for row in engine.list_objects(ObjectId(base.bucket, folder)):
        if not isinstance(row, str):
            path = row.key.removeprefix(folder)
            found[path] = DataFile(path, row.size, row.etag)
    return _contents(metadata, found, base.uri)


def contents_of_folder(folder: Path) -> Contents:
    """What the checkpoint in a folder consists of.

    Raises:
        FileNotFoundError: there is no complete checkpoint.
        MetadataError, ShortRead: as ``contents_of_bucket``.
    """
    metadata = {path.name: path.read_bytes() for path in local_metadata_paths(folder)}
    found = {
        (path := file.relative_to(folder).as_posix()): DataFile(path, file.stat().st_size)
        for file in folder.rglob("*")
        if file.is_file()
    }
    return _contents(metadata, found, str(folder))


def _contents(metadata: Mapping[str, bytes], found: Mapping[str, DataFile], where: str) -> Contents:
    summary = summarize(load_metadata(data, f"{where}/{name}") for name, data in metadata.items())
    for path, needed in needed_nbytes(summary).items():
        check_path(path, where)
        if path not in found:
            raise MetadataError(f"{where}: the metadata refer to {path!r}, which is not there: incomplete checkpoint?")
        if found[path].nbytes < needed:
            raise ShortRead(f"{where}/{path} has {found[path].nbytes} bytes, and the metadata refer to {needed}")
    return Contents(metadata, [found[path] for path in summary.objects])


def needed_nbytes(summary: Summary) -> dict[str, int]:
    """How large each object must be, by its path, for everything to lie in it."""
    needed = dict.fromkeys(summary.objects, 0)
    for place in summary.places():
        needed[place.path] = max(needed[place.path], place.end)
    return needed


def check_path(path: str, where: str) -> None:
    """Refuse a data path that is not one and the same in buckets and in folders, or that is metadata's.

    Raises:
        MetadataError: it is refused.
    """
    plain = PurePosixPath(path)
    if str(plain) != path or path == "." or is_metadata(plain.name):
        raise MetadataError(f"{where}: the metadata refer to {path!r}, which cannot be the path of a data file")
