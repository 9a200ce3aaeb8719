from __future__ import annotations

import functools
import pickle
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import pytest
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem

from aiockpt.s3reader import (
    DCPOptimizedConstructor,
    DCPOptimizedS3Reader,
    ItemRange,
    RangedS3Reader,
    S3ReaderConstructor,
    SequentialS3Reader,
)
from aiockpt.s3reader.dcp_optimized import DEFAULT_MAX_GAP_SIZE, FALLBACK_GUIDANCE
from s3reader.scripted_object import ScriptedObject, numbered

if TYPE_CHECKING:
    import os

    from aiockpt.s3reader import S3Reader
    from aiockpt.s3reader.protocol import S3ReaderConstructorProtocol

DATA = numbered(100)


def item(name: str) -> ReadItem:
    index = MetadataIndex(name)
    return ReadItem(
        type=LoadItemType.TENSOR,
        dest_index=index,
        dest_offsets=index.offset or (),  # type: ignore[arg-type]
        storage_index=index,
        storage_offsets=(),  # type: ignore[arg-type]
        lengths=(),  # type: ignore[arg-type]
    )


STORAGE = {
    MetadataIndex("a"): _StorageInfo("__0_0.distcp", 0, 10),
    MetadataIndex("b"): _StorageInfo("__1_0.distcp", 5, 5),
    MetadataIndex("c"): _StorageInfo("__0_0.distcp", 20, 5),
    MetadataIndex("nothing"): _StorageInfo("__0_0.distcp", 15, 0),
}


def planned(*names: str, base_path: str | os.PathLike[str] = "s3://bucket/step") -> DCPOptimizedConstructor:
    constructor = DCPOptimizedConstructor()
    constructor.set_item_ranges_by_file([item(name) for name in names], STORAGE, base_path)
    return constructor


def make(constructor: S3ReaderConstructorProtocol, key: str, bucket: str = "bucket") -> S3Reader:
    stored = ScriptedObject(DATA)
    return constructor(bucket, key, stored.get_object_info, stored.get_stream)


def test_sequential_is_a_partial_and_the_default() -> None:
    for constructor in (S3ReaderConstructor.sequential(), S3ReaderConstructor.default()):
        assert isinstance(constructor, functools.partial)
        assert (constructor.func, constructor.args, constructor.keywords) == (SequentialS3Reader, (), {})
        assert type(make(constructor, "key")) is SequentialS3Reader


@pytest.mark.parametrize("buffer_size", [None, 0, 5])
def test_range_based_is_a_partial_with_the_buffer_size(buffer_size: int | None) -> None:
    constructor = S3ReaderConstructor.range_based(buffer_size=buffer_size)
    assert isinstance(constructor, functools.partial)
    assert (constructor.func, constructor.keywords) == (RangedS3Reader, {"buffer_size": buffer_size})
    assert type(make(constructor, "key")) is RangedS3Reader


def test_range_based_has_a_buffer_by_default() -> None:
    constructor = S3ReaderConstructor.range_based()
    assert isinstance(constructor, functools.partial)
    assert constructor.keywords == {"buffer_size": None}


@pytest.mark.parametrize("max_gap_size", [0, 5, 1.5, float("inf"), DEFAULT_MAX_GAP_SIZE])
def test_dcp_optimized_takes_a_gap(max_gap_size: float) -> None:
    assert isinstance(S3ReaderConstructor.dcp_optimized(max_gap_size), DCPOptimizedConstructor)


@pytest.mark.parametrize("make_one", [DCPOptimizedConstructor, S3ReaderConstructor.dcp_optimized])
def test_a_gap_that_is_none_is_refused(make_one: Any) -> None:
    with pytest.raises(ValueError, match=r"^max_gap_size must be non-negative"):
        make_one(-1)
    with pytest.raises(TypeError, match=r"^max_gap_size must be int or float, got str$"):
        make_one("1")


def test_the_gap_reaches_the_reader() -> None:
    for max_gap_size, ranges in ((9, [(0, 10), (20, 25)]), (10, [(0, 25)])):
        constructor = DCPOptimizedConstructor(max_gap_size)
        constructor.set_item_ranges_by_file([item("a"), item("c")], STORAGE, "s3://bucket/step")
        stored = ScriptedObject(DATA)
        reader = constructor("bucket", "step/__0_0.distcp", stored.get_object_info, stored.get_stream)
        assert reader.read(10) == DATA[:10]
        reader.seek(20)
        assert reader.read(5) == DATA[20:25]
        assert stored.ranges == ranges


class Own(SequentialS3Reader):
    """A user's reader."""


class OwnConstructor(DCPOptimizedConstructor):
    """A user's constructor."""


@pytest.mark.parametrize(
    ("constructor", "name"),
    [
        (None, "sequential"),
        (S3ReaderConstructor.default(), "sequential"),
        (S3ReaderConstructor.sequential(), "sequential"),
        (S3ReaderConstructor.range_based(), "range_based"),
        (S3ReaderConstructor.range_based(3), "range_based"),
        (S3ReaderConstructor.dcp_optimized(), "dcp_optimized"),
        (OwnConstructor(), "dcp_optimized"),
        (functools.partial(Own), "unknown"),
        (functools.partial(DCPOptimizedS3Reader), "unknown"),
        (SequentialS3Reader, "unknown"),
        (lambda *_: None, "unknown"),
    ],
)
def test_the_name_of_its_kind(constructor: Any, name: str) -> None:
    assert S3ReaderConstructor.get_reader_type_string(constructor) == name


@pytest.mark.parametrize(
    ("base_path", "folder"),
    [
        ("s3://bucket/step", "s3://bucket/step/"),
        ("s3://bucket/step/", "s3://bucket/step/"),
        ("s3://bucket", "s3://bucket/"),
        ("s3://bucket/", "s3://bucket/"),
        (PurePosixPath("/step"), "/step/"),
        ("", ""),
    ],
)
def test_ranges_are_noted_by_uri_in_the_order_of_the_plan(base_path: str | os.PathLike[str], folder: str) -> None:
    assert planned("c", "b", "a", "a", base_path=base_path)._item_ranges_by_file == {
        f"{folder}__0_0.distcp": [ItemRange(20, 25), ItemRange(0, 10), ItemRange(0, 10)],
        f"{folder}__1_0.distcp": [ItemRange(5, 10)],
    }


def test_a_new_plan_replaces_the_one_before() -> None:
    constructor = planned("a", "b")
    constructor.set_item_ranges_by_file([item("c")], STORAGE, "s3://bucket/step")
    assert constructor._item_ranges_by_file == {"s3://bucket/step/__0_0.distcp": [ItemRange(20, 25)]}
    constructor.set_item_ranges_by_file([], {}, "s3://bucket/step")
    assert constructor._item_ranges_by_file == {}


def test_items_need_storage_data() -> None:
    with pytest.raises(ValueError, match=r"^storage_data must not be empty"):
        DCPOptimizedConstructor().set_item_ranges_by_file([item("a")], {}, "s3://bucket/step")


def test_an_item_without_a_place_shows_when_a_reader_is_made() -> None:
    with pytest.raises(KeyError):
        make(planned("missing"), "step/__0_0.distcp")


@pytest.mark.parametrize("key", [".metadata", "step/.metadata", "step/__0.metadata"])
def test_metadata_is_read_sequentially(key: str) -> None:
    assert type(make(DCPOptimizedConstructor(), key)) is SequentialS3Reader


def test_a_planned_object_is_read_by_its_ranges() -> None:
    reader = make(planned("a", "nothing", "c"), "step/__0_0.distcp")
    assert type(reader) is DCPOptimizedS3Reader
    assert reader.read(10) == DATA[:10]
    reader.seek(20)
    assert reader.read(5) == DATA[20:25]


@pytest.mark.parametrize(
    ("bucket", "key"),
    [("bucket", "step/__2_0.distcp"), ("other", "step/__0_0.distcp"), ("bucket", "step/.metadata.tmp")],
)
def test_an_object_without_a_plan_is_refused(bucket: str, key: str) -> None:
    message = f"^No ranges found for s3://{bucket}/{key}.*\n{re.escape(FALLBACK_GUIDANCE)}$"
    with pytest.raises(ValueError, match=message):
        make(planned("a"), key, bucket)


def test_the_same_chunk_twice_can_be_read_twice() -> None:
    reader = make(planned("a", "a", "c"), "step/__0_0.distcp")
    for _ in range(2):
        reader.seek(0)
        assert reader.read(10) == DATA[:10]
    reader.seek(20)
    assert reader.read(5) == DATA[20:25]


def test_constructors_pickle() -> None:
    copy = pickle.loads(pickle.dumps(planned("a")))
    assert make(copy, "step/__0_0.distcp").read(10) == DATA[:10]
    for constructor in (S3ReaderConstructor.sequential(), S3ReaderConstructor.range_based(5)):
        assert make(pickle.loads(pickle.dumps(constructor)), "key").read() == DATA
