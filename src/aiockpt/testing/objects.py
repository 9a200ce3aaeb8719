"""Operations on single objects."""

from __future__ import annotations

import re
from email.utils import formatdate
from urllib.parse import unquote

from aiockpt.model import GiB
from aiockpt.testing.answers import Answer, Refusal, document
from aiockpt.testing.checksums import checksum_headers, given_checksums
from aiockpt.testing.conditions import check_read, check_write, wanted_range
from aiockpt.testing.content import Content, cut
from aiockpt.testing.documents import leaf, root, timestamp
from aiockpt.testing.requests import Request
from aiockpt.testing.state import State, object_headers
from aiockpt.testing.store import StoredObject, etag_of

#: S3's limit for one PUT, one part, and one copied source.
MAX_REQUEST_BYTES = 5 * GiB

#: S3 takes no open-ended ranges here.
_COPY_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{1,18})", re.ASCII)


def get_object(state: State, request: Request) -> Answer:
    """GetObject, whole or one range."""
    stored = state.require(request.bucket, request.key)
    check_read(request, stored)
    wanted = wanted_range(request.header("range"), stored.content.size)
    headers = _headers(stored, request, whole=wanted is None)
    if wanted is None:
        return Answer(headers=headers, body=stored.content)
    headers["Content-Range"] = f"bytes {wanted.start}-{wanted.end - 1}/{stored.content.size}"
    pieces = tuple(cut(stored.content.pieces, wanted.start, wanted.end))
    return Answer(206, headers, Content(pieces, len(wanted), owners=stored.content.owners))


def head_object(state: State, request: Request) -> Answer:
    """HeadObject."""
    stored = state.require(request.bucket, request.key)
    check_read(request, stored)
    wanted = wanted_range(request.header("range"), stored.content.size)
    headers = _headers(stored, request, whole=wanted is None)
    if wanted is None:
        return Answer(headers=headers, length=stored.content.size)
    headers["Content-Range"] = f"bytes {wanted.start}-{wanted.end - 1}/{stored.content.size}"
    return Answer(206, headers, length=len(wanted))


def _headers(stored: StoredObject, request: Request, *, whole: bool) -> dict[str, str]:
    headers = {
        "ETag": stored.etag,
        "Last-Modified": formatdate(stored.modified, usegmt=True),
        "Accept-Ranges": "bytes",
        **stored.headers,
    }
    if whole and request.header("x-amz-checksum-mode").upper() == "ENABLED":
        headers |= checksum_headers(stored.checksums, stored.checksum_type)
    return headers


def put_object(state: State, request: Request) -> Answer:
    """PutObject; the body's checksums have been verified."""
    check_write(request, state.store.get(request.bucket, request.key))
    content = request.content
    checksums = given_checksums(request.headers)
    etag = etag_of(content)
    state.store.put(request.bucket, request.key, StoredObject(content, etag, object_headers(request), checksums))
    return Answer(headers={"ETag": etag} | checksum_headers(checksums, "FULL_OBJECT"))


def copy_object(state: State, request: Request) -> Answer:
    """CopyObject."""
    source = copy_source(state, request)
    if source.content.size > MAX_REQUEST_BYTES:
        raise Refusal("InvalidRequest", "The source is larger than the maximum of 5 GiB for a copy.")
    check_write(request, state.store.get(request.bucket, request.key))
    replaces = request.header("x-amz-metadata-directive").upper() == "REPLACE"
    headers = object_headers(request) if replaces else source.headers
    full = source.checksum_type == "FULL_OBJECT"
    copied = StoredObject(source.content, etag_of(source.content), headers, source.checksums if full else {})
    state.store.put(request.bucket, request.key, copied)
    return document(
        root("CopyObjectResult", leaf("LastModified", timestamp(copied.modified)), leaf("ETag", copied.etag))
    )


def copy_source(state: State, request: Request) -> StoredObject:
    """The object that a copy names.

    Raises:
        Refusal: it is not there, or not as ``x-amz-copy-source-if-(none-)match`` wants it.
    """
    path, _, _ = request.header("x-amz-copy-source").partition("?versionId=")
    bucket, _, key = unquote(path).removeprefix("/").partition("/")
    if not bucket or not key:
        raise Refusal("InvalidArgument", "The copy source names no object.")
    stored = state.require(bucket, key)
    match, none_match = (request.header(f"x-amz-copy-source-if-{name}").strip('"') for name in ("match", "none-match"))
    etag = stored.etag.strip('"')
    if (match and match not in {etag, "*"}) or (none_match and none_match in {etag, "*"}):
        raise Refusal("PreconditionFailed")
    return stored


def copied_content(state: State, request: Request) -> Content:
    """What UploadPartCopy copies: the source, or a range of it.

    Raises:
        Refusal: see ``copy_source``; InvalidArgument or InvalidRange for the range.
    """
    content = copy_source(state, request).content
    header = request.header("x-amz-copy-source-range")
    if not header:
        return content
    match = _COPY_RANGE.fullmatch(header)
    if match is None or int(match[2]) < int(match[1]):
        raise Refusal("InvalidArgument", "The copy source range is not bytes=first-last.")
    if int(match[2]) >= content.size:
        raise Refusal("InvalidRange", status=400)
    return content.cut(int(match[1]), int(match[2]) + 1)


def delete_object(state: State, request: Request) -> Answer:
    """DeleteObject."""
    state.store.delete(request.bucket, request.key)
    return Answer(204)
