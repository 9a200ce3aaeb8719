"""Which reader to use: `S3ReaderConstructor` has the choices, `DCPOptimizedConstructor` carries a load plan.

Constructors are picklable values without I/O. What they make is completed by whoever opens the object.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Protocol

from aiockpt.model import ObjectId
from aiockpt.s3reader.dcp_optimized import (
    DEFAULT_MAX_GAP_SIZE,
    FALLBACK_GUIDANCE,
    DCPOptimizedS3Reader,
    ItemRange,
    check_max_gap_size,
)
from aiockpt.s3reader.protocol import DCPS3ReaderConstructorProtocol, S3ReaderConstructorProtocol
from aiockpt.s3reader.ranged import RangedS3Reader
from aiockpt.s3reader.s3reader import GetObjectInfo, GetStreamCallable, S3Reader
from aiockpt.s3reader.sequential import SequentialS3Reader

METADATA_SUFFIX = ".metadata"


class PlannedItem(Protocol):
    """The part of torch's ``ReadItem`` that says what to read."""

    @property
    def storage_index(self) -> Hashable:
        """Key of the item in the storage data."""


class StoredItem(Protocol):
    """Torch's ``_StorageInfo``: where an item lies."""

    @property
    def relative_path(self) -> str:
        """The object, below the checkpoint's path."""

    @property
    def offset(self) -> int:
        """First byte in the object."""

    @property
    def length(self) -> int:
        """Bytes."""


class DCPOptimizedConstructor:
    """Makes a `DCPOptimizedS3Reader` of a load plan's objects, a `SequentialS3Reader` of ``.metadata``.

    Args:
        max_gap_size: see `DCPOptimizedS3Reader`; also an attribute.

    Raises:
        ValueError: a negative ``max_gap_size``.
        TypeError: ``max_gap_size`` is not a number.
    """

    def __init__(self, max_gap_size: float = DEFAULT_MAX_GAP_SIZE) -> None:
        check_max_gap_size(max_gap_size)
        self.max_gap_size = max_gap_size
        self._plan: tuple[Sequence[PlannedItem], Mapping[Any, StoredItem], str] = ((), {}, "")

    def set_item_ranges_by_file(
        self,
        plan_items: Sequence[PlannedItem],
        storage_data: Mapping[Any, StoredItem],
        base_path: str | os.PathLike[str],
    ) -> None:
        """Note what ``plan_items`` read, in their order; forget earlier ones.

        Raises:
            ValueError: there are items, but ``storage_data`` is empty.
        """
        if plan_items and not storage_data:
            raise ValueError("storage_data must not be empty: it says where the items of the plan lie")
        self._plan = (list(plan_items), storage_data, os.fspath(base_path))
        self.__dict__.pop("_item_ranges_by_file", None)

    @cached_property
    def _item_ranges_by_file(self) -> dict[str, list[ItemRange]]:
        """The items' ranges by the object's URI; made when a reader is, as `S3StorageReader` itself needs none.

        Raises:
            KeyError: an item is not in the storage data.
        """
        plan_items, storage_data, base = self._plan
        by_file: dict[str, list[ItemRange]] = {}
        for item in plan_items:
            stored = storage_data[item.storage_index]
            ranges = by_file.setdefault(_joined(base, stored.relative_path), [])
            ranges.append(ItemRange(stored.offset, stored.offset + stored.length))
        return by_file

    def __call__(
        self, bucket: str, key: str, get_object_info: GetObjectInfo, get_stream: GetStreamCallable
    ) -> S3Reader:
        """A reader for ``s3://bucket/key``.

        An item that the plan asks for twice is one range for the reader, which may be read again while it is
        the current one.

        Raises:
            ValueError: not metadata, and no item of the plan lies there.
        """
        if key.endswith(METADATA_SUFFIX):
            return SequentialS3Reader(bucket, key, get_object_info, get_stream)
        uri = ObjectId(bucket, key).uri
        ranges = self._item_ranges_by_file.get(uri)
        if not ranges:
            raise ValueError(
                f"No ranges found for {uri}: the load plan reads nothing there, or "
                f"S3StorageReader.prepare_local_plan has not run.\n{FALLBACK_GUIDANCE}"
            )
        return DCPOptimizedS3Reader(
            bucket, key, list(dict.fromkeys(ranges)), get_object_info, get_stream, self.max_gap_size
        )


def _joined(base: str, relative_path: str) -> str:
    separator = "" if base.endswith("/") or not base else "/"
    return base + separator + relative_path


class S3ReaderConstructor:
    """The kinds of readers to choose from."""

    @staticmethod
    def sequential() -> S3ReaderConstructorProtocol:
        """The generic reader: one stream, kept in memory, any access pattern."""
        return partial(SequentialS3Reader)

    @staticmethod
    def range_based(buffer_size: int | None = None) -> S3ReaderConstructorProtocol:
        """A request for each read, with a read-ahead buffer for small ones.

        Args:
            buffer_size: bytes; None means 8 MiB, 0 means no buffer. Many small reads near each other want a
                larger one, reads far from each other a smaller one.
        """
        return partial(RangedS3Reader, buffer_size=buffer_size)

    @staticmethod
    def dcp_optimized(max_gap_size: float = DEFAULT_MAX_GAP_SIZE) -> DCPS3ReaderConstructorProtocol:
        """Only what a load plan asks for, in order, from few streams; `S3StorageReader` provides the plan.

        Args:
            max_gap_size: bytes between two items that may be received in vain to spare a stream.
                ``float("inf")``: one stream for each object; 0: one for each run of adjacent items.

        Raises:
            ValueError: negative.
            TypeError: not a number.
        """
        return DCPOptimizedConstructor(max_gap_size)

    @staticmethod
    def default() -> S3ReaderConstructorProtocol:
        """The generic reader: `sequential`."""
        return S3ReaderConstructor.sequential()

    @staticmethod
    def get_reader_type_string(constructor: S3ReaderConstructorProtocol | None) -> str:
        """``sequential``, ``range_based``, ``dcp_optimized``, or ``unknown`` for one that is not made here.

        None counts as the default.
        """
        if isinstance(constructor, DCPOptimizedConstructor):
            return "dcp_optimized"
        made = SequentialS3Reader if constructor is None else getattr(constructor, "func", None)
        if made is SequentialS3Reader:
            return "sequential"
        return "range_based" if made is RangedS3Reader else "unknown"
