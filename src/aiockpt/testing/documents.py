"""S3's XML documents: building those of answers, reading those of requests. Pure."""

from __future__ import annotations

import datetime as dt
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass
from xml.sax.saxutils import escape

from aiockpt.testing.answers import Refusal

_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'


def element(name: str, *children: str) -> str:
    """An element around other elements (already markup)."""
    return f"<{name}>{''.join(children)}</{name}>"


def leaf(name: str, value: object) -> str:
    """An element around text, which is escaped; booleans as S3 writes them."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"<{name}>{escape(text)}</{name}>"


def optional(name: str, value: object) -> str:
    """Like ``leaf``; nothing at all for None and the empty text."""
    return leaf(name, value) if value not in {None, ""} else ""


def root(name: str, *children: str) -> bytes:
    """A whole document."""
    return f'{_DECLARATION}<{name} xmlns="{_NAMESPACE}">{"".join(children)}</{name}>'.encode()


def error(refusal: Refusal, resource: str, request_id: str) -> bytes:
    """The document of a refusal; S3 gives it no namespace."""
    return (
        _DECLARATION
        + element(
            "Error",
            leaf("Code", refusal.code),
            leaf("Message", refusal.message),
            leaf("Resource", resource),
            leaf("RequestId", request_id),
        )
    ).encode()


def timestamp(seconds: float) -> str:
    """A time as documents have it."""
    moment = dt.datetime.fromtimestamp(seconds, dt.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class PartReference:
    """A part as CompleteMultipartUpload names it; ``checksums`` by algorithm in lower case."""

    number: int
    etag: str
    checksums: dict[str, str]


def parse_complete(body: bytes) -> list[PartReference]:
    """Read the request of CompleteMultipartUpload.

    Raises:
        Refusal: MalformedXML, also when it lists no parts.
    """
    parts = [_part(texts) for texts in _records(_parse(body), "Part")]
    if not parts:
        raise Refusal("MalformedXML")
    return parts


def _part(texts: dict[str, str]) -> PartReference:
    try:
        number = int(texts["PartNumber"])
        etag = texts["ETag"]
    except (KeyError, ValueError):
        raise Refusal("MalformedXML") from None
    checksums = {
        name.removeprefix("Checksum").lower(): text for name, text in texts.items() if name.startswith("Checksum")
    }
    return PartReference(number, etag, checksums)


def parse_delete(body: bytes) -> tuple[list[str], bool]:
    """Read the request of DeleteObjects: the keys, and whether only errors are to be reported.

    Raises:
        Refusal: MalformedXML, also for more than 1000 keys.
    """
    tree = _parse(body)
    keys = [texts.get("Key", "") for texts in _records(tree, "Object")]
    if not 1 <= len(keys) <= 1000 or not all(keys):
        raise Refusal("MalformedXML")
    quiet = any(_local(node.tag) == "Quiet" and node.text == "true" for node in tree)
    return keys, quiet


def _parse(body: bytes) -> ET.Element:
    try:
        text = body.decode()
        if "<!DOCTYPE" in text:
            raise Refusal("MalformedXML")
        return ET.fromstring(text)  # noqa: S314  # no DOCTYPE: no entities to expand
    except (UnicodeDecodeError, ET.ParseError):
        raise Refusal("MalformedXML") from None


def _records(tree: ET.Element, name: str) -> Iterable[dict[str, str]]:
    for node in tree:
        if _local(node.tag) == name:
            yield {_local(child.tag): (child.text or "") for child in node}


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]
