"""Checkpoints in a listing of objects: which there are, and whether they are complete. Pure.

A folder with metadata is a checkpoint; data objects belong to the nearest one above them. Data without any metadata
above it is an incomplete checkpoint: one that is being written, or that a killed writer left.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from aiockpt.dcp.names import is_data, is_metadata, rank_of, step_of
from aiockpt.s3.control import ListedObject


@dataclass(slots=True)
class Found:
    """A checkpoint, as far as a listing tells.

    Attributes:
        path: its key.
        metadata: keys of its metadata; none: it is incomplete.
        objects, nbytes: its data objects, and the bytes of all its objects.
        ranks: that wrote them, as far as names say.
        modified: when its metadata was written; of an incomplete one, its newest object.
    """

    path: str
    metadata: list[str] = field(default_factory=list)
    objects: int = 0
    nbytes: int = 0
    ranks: set[int] = field(default_factory=set)
    modified: datetime | None = None

    @property
    def complete(self) -> bool:
        """Whether a load would find it."""
        return bool(self.metadata)

    @property
    def step(self) -> int | None:
        """The step that its path names."""
        return step_of(self.path)

    def add(self, row: ListedObject, name: str) -> None:
        """Account for an object of its own folder."""
        self.nbytes += row.size
        if is_metadata(name):
            self.metadata.append(row.key)
        elif is_data(name):
            self.objects += 1
            self.ranks |= {rank} if (rank := rank_of(name)) is not None else set()
        if self.modified is None or (row.last_modified is not None and row.last_modified > self.modified):
            self.modified = row.last_modified

    def absorb(self, below: Found) -> None:
        """Account for a folder of data below."""
        self.objects += below.objects
        self.nbytes += below.nbytes
        self.ranks |= below.ranks


def find_checkpoints(rows: Iterable[ListedObject | str]) -> list[Found]:
    """The checkpoints among listed objects: by step, those without one last, then by path."""
    folders: dict[str, Found] = {}
    for row in rows:
        if isinstance(row, str):
            continue
        path, _, name = row.key.rpartition("/")
        folders.setdefault(path, Found(path)).add(row, name)
    found = {path: folder for path, folder in folders.items() if folder.complete}
    for path, folder in folders.items():
        if folder.complete or not folder.objects:
            continue
        owner = _owner(path, folders)
        if owner is None:
            found[path] = folder
        else:
            owner.absorb(folder)
    return sorted(found.values(), key=lambda one: (one.step is None, one.step or 0, one.path))


def _owner(path: str, folders: dict[str, Found]) -> Found | None:
    """The complete checkpoint nearest above ``path``."""
    while path:
        path = path.rpartition("/")[0]
        if path in folders and folders[path].complete:
            return folders[path]
    return None
