from __future__ import annotations

import pytest

from aiockpt.model import ByteRange
from aiockpt.testing.answers import Refusal
from aiockpt.testing.conditions import check_read, check_write, wanted_range
from aiockpt.testing.content import Content
from aiockpt.testing.requests import Request
from aiockpt.testing.store import StoredObject

STORED = StoredObject(Content.of(b"x"), '"tag"')


def request(**headers: str) -> Request:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Request("GET", "", "b", "k", {}, named, keep_alive=True)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", None),
        ("bytes=0-0", ByteRange(0, 1)),
        ("bytes=3-", ByteRange(3, 10)),
        ("bytes=3-100", ByteRange(3, 10)),
        ("bytes=-4", ByteRange(6, 10)),
        ("bytes=-40", ByteRange(0, 10)),
        ("bytes=5-4", None),
        ("bytes=-", None),
        ("bytes=0-1,3-4", None),
        ("items=0-1", None),
    ],
)
def test_ranges(header: str, expected: ByteRange | None) -> None:
    assert wanted_range(header, 10) == expected


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-11", "bytes=-0"])
def test_ranges_outside(header: str) -> None:
    with pytest.raises(Refusal, match="InvalidRange"):
        wanted_range(header, 10)


def test_reading() -> None:
    check_read(request(), STORED)
    check_read(request(if_match='"other", "tag"', if_none_match="other"), STORED)
    with pytest.raises(Refusal, match="412"):
        check_read(request(if_match="other"), STORED)
    with pytest.raises(Refusal, match="304"):
        check_read(request(if_none_match="*"), STORED)


def test_writing() -> None:
    check_write(request(), STORED)
    check_write(request(if_none_match="*"), None)
    check_write(request(if_match='"tag"'), STORED)
    for refused, stored, code in [
        (request(if_none_match="*"), STORED, "PreconditionFailed"),
        (request(if_match="other"), STORED, "PreconditionFailed"),
        (request(if_match="tag"), None, "NoSuchKey"),
        (request(if_none_match="tag"), None, "NotImplemented"),
    ]:
        with pytest.raises(Refusal, match=code):
            check_write(refused, stored)
