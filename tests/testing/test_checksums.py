from __future__ import annotations

import base64
import hashlib
import zlib

import pytest

from aiockpt.testing.answers import Refusal
from aiockpt.testing.checksums import composite, crc32_text, decode_aws_chunked, verify
from aiockpt.testing.content import Content

DATA = b"some bytes"
CONTENT = Content.of(DATA)


def b64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


GOOD = {
    "content-md5": b64(hashlib.md5(DATA).digest()),
    "x-amz-checksum-crc32": b64(zlib.crc32(DATA).to_bytes(4, "big")),
    "x-amz-checksum-sha1": b64(hashlib.sha1(DATA).digest()),
    "x-amz-checksum-sha256": b64(hashlib.sha256(DATA).digest()),
    "x-amz-content-sha256": hashlib.sha256(DATA).hexdigest(),
}


def test_right_checksums_pass() -> None:
    verify(CONTENT, GOOD)
    verify(CONTENT, {"x-amz-content-sha256": "UNSIGNED-PAYLOAD", "x-amz-checksum-crc32c": "AAAAAA=="})


@pytest.mark.parametrize("name", GOOD)
def test_wrong_checksums_do_not(name: str) -> None:
    with pytest.raises(Refusal, match=r"BadDigest|XAmzContentSHA256Mismatch"):
        verify(Content.of(b"other"), {name: GOOD[name]})


@pytest.mark.parametrize("value", ["!", "AAAA"])
def test_what_is_no_checksum(value: str) -> None:
    with pytest.raises(Refusal, match="InvalidDigest"):
        verify(CONTENT, {"x-amz-checksum-crc32": value})


def test_composite() -> None:
    parts = [zlib.crc32(part) for part in (b"a", b"b")]
    expected = zlib.crc32(b"".join(crc.to_bytes(4, "big") for crc in parts))
    assert composite("crc32", map(crc32_text, parts)) == crc32_text(expected) + "-2"
    assert composite("crc32c", ["AAAAAA=="]) == ""


def test_aws_chunks_are_taken_apart() -> None:
    body = b"5;chunk-signature=x\r\nhello\r\n3\r\n\r\n!\r\n0\r\nx-amz-checksum-crc32:AAAA==\r\n\r\n"
    assert decode_aws_chunked(body) == (b"hello\r\n!", {"x-amz-checksum-crc32": "AAAA=="})


@pytest.mark.parametrize("body", [b"", b"5\r\nhel", b"5\r\nhello!!\r\n0\r\n\r\n", b"x\r\n"])
def test_cut_off_aws_chunks_are_refused(body: bytes) -> None:
    with pytest.raises(Refusal, match="IncompleteBody"):
        decode_aws_chunked(body)
