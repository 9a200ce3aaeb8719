from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from aiockpt.model import ANYTHING, NOTHING, ByteRange, ObjectId, ObjectInfo


def test_ranges_are_half_open() -> None:
    assert len(ByteRange(3, 10)) == 7
    assert not ByteRange(3, 3)
    assert ByteRange(1, 9) < ByteRange(2, 3)


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (3, 2), (-3, -2)])
def test_a_range_that_is_none(start: int, end: int) -> None:
    with pytest.raises(ValueError, match=f"Invalid range: {start}-{end}"):
        ByteRange(start, end)


@pytest.mark.parametrize(
    ("uri", "bucket", "key"),
    [
        ("s3://bucket", "bucket", ""),
        ("s3://bucket/", "bucket", ""),
        ("s3://bucket/a/b c+%.pt", "bucket", "a/b c+%.pt"),
        ("s3://bucket//a", "bucket", "/a"),
        ("s3://bucket/ä", "bucket", "ä"),
    ],
)
def test_uris(uri: str, bucket: str, key: str) -> None:
    parsed = ObjectId.parse(uri)
    assert (parsed.bucket, parsed.key) == (bucket, key)
    assert parsed.uri == str(parsed) == (uri if key else "s3://bucket/")
    assert ObjectId.parse(parsed.uri) == parsed


@pytest.mark.parametrize(
    "uri", ["", "bucket/key", "file:///tmp/a", "S3://bucket/key", "s3:/bucket/key", Path("s3://b/k")]
)
def test_another_scheme(uri: Any) -> None:
    with pytest.raises(ValueError, match="Only s3:// URIs are supported"):
        ObjectId.parse(uri)


@pytest.mark.parametrize("uri", ["s3://", "s3:///key"])
def test_no_bucket(uri: str) -> None:
    with pytest.raises(ValueError, match="Bucket name must be non-empty"):
        ObjectId.parse(uri)


@pytest.mark.parametrize(
    ("key", "joined"), [("", "name"), ("a", "a/name"), ("a/", "a/name"), ("a/b", "a/b/name"), ("a//", "a/name")]
)
def test_below(key: str, joined: str) -> None:
    assert ObjectId("bucket", key) / "name" == ObjectId("bucket", joined)


@pytest.mark.parametrize("value", [ByteRange(1, 2), ObjectId("b", "k"), ObjectInfo(3, "e"), ANYTHING, NOTHING])
def test_values_are_frozen_and_pickle(value: Any) -> None:
    assert pickle.loads(pickle.dumps(value)) == value
    assert hash(value) == hash(pickle.loads(pickle.dumps(value)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(value)[0].name, 1)


def test_a_path_is_no_uri() -> None:
    with pytest.raises(ValueError, match="Only s3"):
        ObjectId.parse(PurePosixPath("/s3/bucket"))
