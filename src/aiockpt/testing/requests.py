"""Requests: parsing their heads, and which S3 operation they ask for. Path-style addresses only. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

import httptools

from aiockpt.testing.answers import Refusal
from aiockpt.testing.content import EMPTY, Content

_MAX_KEY_BYTES = 1024
_CREDENTIAL = re.compile(r"Credential=([^/,\s]+)/")

CONDITIONS = frozenset({"if-match", "if-none-match"})


@dataclass(frozen=True, slots=True)
class Request:
    """A request, its body included once that has been received.

    Attributes:
        path: as it was sent, without the query.
        bucket, key: decoded; ``""`` where there is none.
        query: decoded; a flag such as ``?uploads`` has the value ``""``.
        headers: names in lower case.
    """

    method: str
    path: str
    bucket: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    keep_alive: bool
    content: Content = EMPTY

    def header(self, name: str) -> str:
        """A header's value, ``""`` if it is not there."""
        return self.headers.get(name, "")

    def without(self, names: frozenset[str]) -> Request:
        """The same request without some headers."""
        return replace(self, headers={name: text for name, text in self.headers.items() if name not in names})

    @property
    def content_length(self) -> int | None:
        """The announced length of the body; None if there is none.

        Raises:
            Refusal: it is no number.
        """
        text = self.header("content-length")
        if text and not (text.isascii() and text.isdigit() and len(text) < 19):
            raise Refusal("InvalidArgument", "Content-Length is not a number.")
        return int(text) if text else None

    @property
    def is_chunked(self) -> bool:
        """Whether the body comes in HTTP's chunks."""
        return self.header("transfer-encoding").lower() == "chunked"

    @property
    def access_key(self) -> str | None:
        """The access key ID that signs the request, in a header or in its URL; None: it is anonymous."""
        if "X-Amz-Credential" in self.query:
            return self.query["X-Amz-Credential"].partition("/")[0]
        if "AWSAccessKeyId" in self.query:
            return self.query["AWSAccessKeyId"]
        if not self.header("authorization"):
            return None
        match = _CREDENTIAL.search(self.header("authorization"))
        return match[1] if match else ""


class _HeadEvents:
    """What llhttp's callbacks collect; the method names are httptools'."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: dict[str, str] = {}

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1").strip()


def parse_request(head: bytes) -> Request:
    """Parse one request head, blank line included.

    Raises:
        Refusal: it is malformed, or empty.
    """
    if not head:
        raise Refusal("InvalidURI")
    events = _HeadEvents()
    parser = httptools.HttpRequestParser(events)
    try:
        parser.feed_data(head)
        path, _, query = events.url.decode("ascii").partition("?")
        bucket, _, key = path.removeprefix("/").partition("/")
        return Request(
            method=parser.get_method().decode("ascii"),
            path=path,
            bucket=unquote(bucket, errors="strict"),
            key=unquote(key, errors="strict"),
            query=dict(parse_qsl(query, keep_blank_values=True, errors="strict")),
            headers=events.headers,
            keep_alive=_keeps_alive(parser.get_http_version(), events.headers.get("connection", "")),
        )
    except (httptools.HttpParserError, httptools.HttpParserUpgrade, ValueError):
        raise Refusal("InvalidURI") from None


def _keeps_alive(version: str, connection: str) -> bool:
    options = {option.strip() for option in connection.lower().split(",")}
    return "close" not in options and (version == "1.1" or "keep-alive" in options)


class _Route(NamedTuple):
    """A kind of request; ``flag`` is the query parameter that it must have, ``""``: none of the others'."""

    method: str
    level: str
    flag: str
    operation: str


#: The first that fits counts.
_ROUTES = (
    _Route("GET", "service", "", "ListBuckets"),
    _Route("PUT", "bucket", "", "CreateBucket"),
    _Route("HEAD", "bucket", "", "HeadBucket"),
    _Route("DELETE", "bucket", "", "DeleteBucket"),
    _Route("POST", "bucket", "delete", "DeleteObjects"),
    _Route("GET", "bucket", "location", "GetBucketLocation"),
    _Route("GET", "bucket", "uploads", "ListMultipartUploads"),
    _Route("GET", "bucket", "list-type", "ListObjectsV2"),
    _Route("GET", "object", "uploadId", "ListParts"),
    _Route("PUT", "object", "uploadId", "UploadPart"),
    _Route("POST", "object", "uploads", "CreateMultipartUpload"),
    _Route("POST", "object", "uploadId", "CompleteMultipartUpload"),
    _Route("DELETE", "object", "uploadId", "AbortMultipartUpload"),
    _Route("GET", "object", "", "GetObject"),
    _Route("HEAD", "object", "", "HeadObject"),
    _Route("PUT", "object", "", "PutObject"),
    _Route("DELETE", "object", "", "DeleteObject"),
)

_COPIES = {"PutObject": "CopyObject", "UploadPart": "UploadPartCopy"}

#: Query parameters that ask for operations which are not here, and must not be taken for another operation.
_UNSUPPORTED = frozenset(
    {
        *(
            "acl",
            "attributes",
            "cors",
            "encryption",
            "legal-hold",
            "lifecycle",
            "object-lock",
            "policy",
            "restore",
        ),
        *("retention", "select", "tagging", "torrent", "versionId", "versioning", "versions", "website"),
    }
)


def operation_of(request: Request) -> str:
    """S3's name of the operation.

    Raises:
        Refusal: there is no such operation, or not here.
    """
    if _UNSUPPORTED & request.query.keys():
        raise Refusal("NotImplemented")
    if len(request.key.encode()) > _MAX_KEY_BYTES:
        raise Refusal("KeyTooLongError")
    level = "object" if request.key else "bucket" if request.bucket else "service"
    for method, at, flag, operation in _ROUTES:
        if method == request.method and at == level and (not flag or flag in request.query):
            is_copy = "x-amz-copy-source" in request.headers
            return _COPIES.get(operation, operation) if is_copy else operation
    raise Refusal("NotImplemented" if (request.method, level) == ("GET", "bucket") else "MethodNotAllowed")
