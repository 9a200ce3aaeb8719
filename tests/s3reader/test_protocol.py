from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest

from aiockpt.s3reader import (
    DCPOptimizedConstructor,
    DCPS3ReaderConstructorProtocol,
    RangedS3Reader,
    S3Reader,
    S3ReaderConstructor,
    S3ReaderConstructorProtocol,
    SequentialS3Reader,
)
from s3reader.scripted_object import ScriptedObject

if TYPE_CHECKING:
    import os

    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import MetadataIndex
    from torch.distributed.checkpoint.planner import ReadItem

    from aiockpt.s3reader.s3reader import GetObjectInfo, GetStreamCallable


def by_size(bucket: str, key: str, get_object_info: GetObjectInfo, get_stream: GetStreamCallable) -> S3Reader:
    """A third party's constructor, as type checkers see it."""
    kind = SequentialS3Reader if get_object_info().size < 10 else RangedS3Reader
    return kind(bucket, key, get_object_info, get_stream)


class Planned:
    """A third party's constructor that wants the plan, in torch's types."""

    def set_item_ranges_by_file(
        self,
        plan_items: list[ReadItem],
        storage_data: dict[MetadataIndex, _StorageInfo],
        base_path: str | os.PathLike[str],
    ) -> None:
        """Note nothing."""

    def __call__(
        self, bucket: str, key: str, get_object_info: GetObjectInfo, get_stream: GetStreamCallable
    ) -> S3Reader:
        return SequentialS3Reader(bucket, key, get_object_info, get_stream)


plain: S3ReaderConstructorProtocol = by_size
generic: S3ReaderConstructorProtocol = S3ReaderConstructor.sequential()
planned: DCPS3ReaderConstructorProtocol = Planned()
ours: DCPS3ReaderConstructorProtocol = DCPOptimizedConstructor()


@pytest.mark.parametrize(
    ("constructor", "is_constructor", "takes_plan"),
    [
        (plain, True, False),
        (generic, True, False),
        (S3ReaderConstructor.range_based(5), True, False),
        (functools.partial(by_size), True, False),
        (RangedS3Reader, True, False),
        (planned, True, True),
        (ours, True, True),
        (S3ReaderConstructor.dcp_optimized(), True, True),
        (object(), False, False),
        ("sequential", False, False),
    ],
)
def test_what_is_a_constructor(constructor: Any, is_constructor: bool, takes_plan: bool) -> None:
    assert isinstance(constructor, S3ReaderConstructorProtocol) is is_constructor
    assert isinstance(constructor, DCPS3ReaderConstructorProtocol) is takes_plan


@pytest.mark.parametrize("constructor", [plain, generic, planned, S3ReaderConstructor.range_based()])
def test_a_constructor_makes_a_reader(constructor: S3ReaderConstructorProtocol) -> None:
    stored = ScriptedObject(b"0123456789")
    reader = constructor(
        bucket="bucket", key="key", get_object_info=stored.get_object_info, get_stream=stored.get_stream
    )
    assert isinstance(reader, S3Reader)
    assert reader.read() == b"0123456789"
