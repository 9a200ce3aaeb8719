"""S3's shapes on the wire: range and checksum headers, keys in paths, error documents. Pure text and octets.

Here alone ranges have inclusive ends: HTTP counts that way, the rest of aiockpt half-open.
"""

from __future__ import annotations

import base64
import binascii
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote
from xml.sax.saxutils import escape

from aiockpt.errors import LocalProtocolError, RemoteProtocolError
from aiockpt.model import ByteRange, KiB

#: S3's error documents are below 2 KiB; what is longer is not one.
MAX_ERROR_BYTES = 64 * KiB

# 18 digits hold any object's size and need no big-integer conversion.
_CONTENT_RANGE = re.compile(r"bytes[ \t]+([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", re.IGNORECASE)
_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_WEAK = "W/"
_COMPOSITE = re.compile(r"[A-Za-z0-9+/=]+-[0-9]+")


def range_header(range: ByteRange) -> str:  # noqa: A002  # the value is a range, in HTTP's word too
    """The value of a ``Range`` header that asks for ``range``.

    Raises:
        LocalProtocolError: the range is empty, which HTTP cannot say.
    """
    if not range:
        raise LocalProtocolError("an empty range cannot be asked for")
    return f"bytes={range.start}-{range.end - 1}"


def parse_content_range(value: str) -> tuple[ByteRange, int | None]:
    """Parse a 206 answer's ``Content-Range``: the range, and the object's size (None if it is not told).

    Raises:
        RemoteProtocolError: it names no range of bytes, or one outside the object.
    """
    match = _CONTENT_RANGE.fullmatch(value.strip())
    if match is None:
        raise RemoteProtocolError(f"malformed Content-Range {value[:100]!r}")
    first, last = int(match[1]), int(match[2])
    total = None if match[3] == "*" else int(match[3])
    if last < first or (total is not None and last >= total):
        raise RemoteProtocolError(f"impossible Content-Range {value[:100]!r}")
    return ByteRange(first, last + 1), total


def crc32_header(crc32: int) -> str:
    """The value of ``x-amz-checksum-crc32``: Base64 of the big-endian checksum."""
    return base64.b64encode(crc32.to_bytes(4, "big")).decode("ascii")


def parse_crc32_header(value: str) -> int | None:
    """Parse ``x-amz-checksum-crc32``; None for a composite one (``…-3``), made of its parts' checksums.

    Raises:
        RemoteProtocolError: it is no CRC32 at all.
    """
    if _COMPOSITE.fullmatch(value):
        return None
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise RemoteProtocolError("malformed CRC32 checksum header") from exc
    if len(raw) != 4:
        raise RemoteProtocolError("malformed CRC32 checksum header")
    return int.from_bytes(raw, "big")


def encode_key(key: str) -> str:
    """Percent-encode a key for a request's path the way that S3 signs it.

    UTF-8, all encoded but ``A-Za-z0-9-._~/``, upper-case hex digits. The key is opaque: ``..``, ``.`` and
    ``//`` in it stay as they are.

    Raises:
        UnicodeEncodeError: the key holds a lone surrogate.
    """
    return quote(key, safe="/~")


def bare_etag(value: object) -> str:
    """An ETag without the quotes that some servers put around it and others do not; ``""`` for none.

    A weak one (``W/"…"``) stays as it is: it may be compared with another answer's, and never sent (``if_match``).
    """
    text = str(value or "")
    return text if text.startswith(_WEAK) else text.strip('"')


def part_etag(header: str) -> str:
    """A part's ETag for the completion of its upload: a mark that it is weak is a proxy's, and the service has none."""
    return header.removeprefix(_WEAK)


def if_match(etag: str) -> str:
    """The value of an ``If-Match`` header for a bare ETag; ``""``: there is none to send.

    Weak ones never match (RFC 9110 §13.1.1): such a request would be refused although the object is the same.
    """
    return f'"{etag}"' if etag and not etag.startswith(_WEAK) else ""


def completion_document(parts: Iterable[tuple[int, str]]) -> bytes:
    """The body of CompleteMultipartUpload for parts in order: their numbers, and the ETags as the service gave them."""
    rows = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(etag)}</ETag></Part>" for number, etag in parts
    )
    return f'<CompleteMultipartUpload xmlns="{_NAMESPACE}">{rows}</CompleteMultipartUpload>'.encode()


@dataclass(frozen=True, slots=True)
class ErrorDocument:
    """What S3 says about a failure; ``""`` where it says nothing.

    Attributes:
        region, endpoint: where the bucket is, in answers that redirect.
    """

    code: str = ""
    message: str = ""
    request_id: str = ""
    region: str = ""
    endpoint: str = ""


def parse_error(body: bytes) -> ErrorDocument:
    """Read an S3 error document: ``<Error>``, also within ``<ErrorResponse>``, with or without a namespace.

    Total: whatever else the body is (empty, HTML, cut off, too long, another document) gives empty fields,
    since a failure whose status is known must not be hidden by one of reading about it.
    """
    root = _parse_xml(body)
    if root is None or _local(root.tag) not in {"Error", "ErrorResponse"}:
        return ErrorDocument()
    texts: dict[str, str] = {}
    for element in root.iter():
        texts.setdefault(_local(element.tag), (element.text or "").strip())
    return ErrorDocument(
        code=texts.get("Code", ""),
        message=texts.get("Message", ""),
        request_id=texts.get("RequestId", ""),
        region=texts.get("Region", ""),
        endpoint=texts.get("Endpoint", ""),
    )


def _parse_xml(body: bytes) -> ET.Element | None:
    """The root element; None if this is no XML that we would read."""
    try:
        text = body.decode("utf-8-sig") if len(body) <= MAX_ERROR_BYTES else ""
        if "<!DOCTYPE" in text:
            return None
        # Parsed as text, so that an encoding declaration cannot make a DOCTYPE appear that the check did not
        # see; without one there are no entities to expand or to fetch.
        return ET.fromstring(text)  # noqa: S314  # see above, and the size is bounded
    except (ET.ParseError, UnicodeDecodeError):
        return None


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]
