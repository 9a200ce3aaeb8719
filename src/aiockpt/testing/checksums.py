"""Checksums that come with a body, in headers or trailers, and aws-chunked bodies. Pure.

CRC32 is known of every body anyway. SHA-1, SHA-256 and MD5 are computed when a client sends them, at its
expense. CRC32C and CRC64NVME are recorded and not verified: nothing that this project depends on computes
them quickly.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping

from aiockpt.testing.answers import Refusal
from aiockpt.testing.content import Content

_PREFIX = "x-amz-checksum-"
ALGORITHMS = ("crc32", "crc32c", "crc64nvme", "sha1", "sha256")
_UNVERIFIED = {"crc32c", "crc64nvme"}
_SHA256_HEX = re.compile(r"[0-9a-f]{64}")


def verify(content: Content, headers: Mapping[str, str]) -> None:
    """Check every checksum in ``headers`` (trailers among them) against a body.

    Raises:
        Refusal: BadDigest, InvalidDigest or XAmzContentSHA256Mismatch.
    """
    if "content-md5" in headers:
        _compare(headers["content-md5"], _hashed("md5", content))
    signed = headers.get("x-amz-content-sha256", "")
    if _SHA256_HEX.fullmatch(signed) and bytes.fromhex(signed) != _hashed("sha256", content):
        raise Refusal("XAmzContentSHA256Mismatch")
    for algorithm, value in given_checksums(headers).items():
        if algorithm == "crc32":
            _compare(value, content.crc32.to_bytes(4, "big"))
        elif algorithm not in _UNVERIFIED:
            _compare(value, _hashed(algorithm, content))


def given_checksums(headers: Mapping[str, str]) -> dict[str, str]:
    """The S3 checksums in some headers, by algorithm, in Base64."""
    return {name: headers[_PREFIX + name] for name in ALGORITHMS if _PREFIX + name in headers}


def checksum_headers(checksums: Mapping[str, str], kind: str) -> dict[str, str]:
    """The headers that tell a client about checksums, if there are any. ``kind`` is S3's checksum type."""
    headers = {_PREFIX + name: value for name, value in checksums.items()}
    return headers | {"x-amz-checksum-type": kind} if headers else {}


def composite(algorithm: str, values: Iterable[str]) -> str:
    """S3's checksum of the parts' checksums, with the number of parts; ``""`` where it is not known."""
    raw = [base64.b64decode(value) for value in values]
    if algorithm == "crc32":
        digest = Content.of(b"".join(raw)).crc32.to_bytes(4, "big")
    elif algorithm in {"sha1", "sha256"}:
        digest = hashlib.new(algorithm, b"".join(raw)).digest()
    else:
        return ""
    return f"{_encode(digest)}-{len(raw)}"


def crc32_text(crc32: int) -> str:
    """A CRC32 as S3 writes it."""
    return _encode(crc32.to_bytes(4, "big"))


def _encode(digest: bytes) -> str:
    return base64.b64encode(digest).decode("ascii")


def _hashed(algorithm: str, content: Content) -> bytes:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    for piece in content.pieces:
        digest.update(piece)
    return digest.digest()


def _compare(value: str, digest: bytes) -> None:
    try:
        given = base64.b64decode(value, validate=True)
    except ValueError:
        raise Refusal("InvalidDigest") from None
    if len(given) != len(digest):
        raise Refusal("InvalidDigest")
    if given != digest:
        raise Refusal("BadDigest")


def decode_aws_chunked(data: bytes) -> tuple[bytes, dict[str, str]]:
    """Take an aws-chunked body apart: the payload, and the trailers with names in lower case.

    Chunk signatures are read over.

    Raises:
        Refusal: IncompleteBody, it is cut off or no such body.
    """
    payload: list[bytes] = []
    position = 0
    while True:
        line, position = _line(data, position)
        try:
            size = int(line.partition(b";")[0], 16)
        except ValueError:
            raise Refusal("IncompleteBody") from None
        if size == 0:
            return b"".join(payload), _trailers(data[position:])
        payload.append(data[position : position + size])
        blank, position = _line(data, position + size)
        if blank:
            raise Refusal("IncompleteBody")


def _line(data: bytes, start: int) -> tuple[bytes, int]:
    end = data.find(b"\r\n", start)
    if end < 0:
        raise Refusal("IncompleteBody")
    return data[start:end], end + 2


def _trailers(data: bytes) -> dict[str, str]:
    pairs = (line.partition(":") for line in data.decode("latin-1").split("\r\n") if line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}
