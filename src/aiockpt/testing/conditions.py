"""What a request's headers say about which bytes, and on which condition. Pure."""

from __future__ import annotations

import re

from aiockpt.model import ByteRange
from aiockpt.testing.answers import Refusal
from aiockpt.testing.requests import Request
from aiockpt.testing.store import StoredObject

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


def check_read(request: Request, stored: StoredObject) -> None:
    """Hold If-Match and If-None-Match of a GET or HEAD against the object.

    Raises:
        Refusal: PreconditionFailed or NotModified.
    """
    if "if-match" in request.headers and not _matches(request.header("if-match"), stored.etag):
        raise Refusal("PreconditionFailed")
    if "if-none-match" in request.headers and _matches(request.header("if-none-match"), stored.etag):
        raise Refusal("NotModified", headers={"ETag": stored.etag})


def check_write(request: Request, stored: StoredObject | None) -> None:
    """Hold If-Match and If-None-Match of a write against the object that it would replace.

    Raises:
        Refusal: PreconditionFailed; NoSuchKey where If-Match finds no object; NotImplemented for an
            If-None-Match other than ``*``, which S3 does not take either.
    """
    none_match = request.header("if-none-match")
    if none_match and none_match != "*":
        raise Refusal("NotImplemented")
    if none_match and stored is not None:
        raise Refusal("PreconditionFailed")
    if "if-match" in request.headers:
        if stored is None:
            raise Refusal("NoSuchKey")
        if not _matches(request.header("if-match"), stored.etag):
            raise Refusal("PreconditionFailed")


def _matches(header: str, etag: str) -> bool:
    tags = {tag.strip().strip('"') for tag in header.split(",")}  # a weak one keeps its W/ and so matches none
    return "*" in tags or etag.strip('"') in tags


def wanted_range(header: str, size: int) -> ByteRange | None:
    """The bytes that a Range header asks of an object of ``size`` bytes.

    None means all of it: there is no header, or one that is not understood, which HTTP has servers ignore.

    Raises:
        Refusal: InvalidRange, nothing of it lies in the object.
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None or not (match[1] or match[2]):
        return None
    if match[1]:
        start, end = int(match[1]), int(match[2]) + 1 if match[2] else size
        if match[2] and end <= start:
            return None
    else:
        start, end = max(size - int(match[2]), 0), size
    if start >= size or start >= end:
        raise Refusal("InvalidRange", headers={"Content-Range": f"bytes */{size}"})
    return ByteRange(start, min(end, size))
