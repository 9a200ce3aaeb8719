"""What a reader constructor is: anything callable that makes a reader from a name and two callables.

Both protocols can be checked at run time; a third-party constructor that satisfies one works wherever aiockpt
takes a constructor.
"""

from __future__ import annotations

import os
from typing import Any, Protocol, runtime_checkable

from aiockpt.s3reader.s3reader import GetObjectInfo, GetStreamCallable, S3Reader


@runtime_checkable
class S3ReaderConstructorProtocol(Protocol):
    """Makes readers."""

    def __call__(
        self, bucket: str, key: str, get_object_info: GetObjectInfo, get_stream: GetStreamCallable
    ) -> S3Reader:
        """A reader of ``s3://bucket/key``; making it does no I/O."""


@runtime_checkable
class DCPS3ReaderConstructorProtocol(S3ReaderConstructorProtocol, Protocol):
    """Makes readers that are told beforehand which bytes a load plan will ask for."""

    # list[Any] and dict[Any, Any], so that implementations may name torch's ReadItem, MetadataIndex and
    # _StorageInfo, which this room does not know, or anything with their attributes.
    def set_item_ranges_by_file(
        self, plan_items: list[Any], storage_data: dict[Any, Any], base_path: str | os.PathLike[str]
    ) -> None:
        """Note where the items of a plan lie, below ``base_path``; forget what was noted before."""
