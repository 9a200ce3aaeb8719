from __future__ import annotations

import base64
import http.client
import re
import zlib

import pytest

from testing.rawclient import AUTHORIZATION, RawClient

DATA = bytes(range(256)) * 40


def crc32(data: bytes) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


def code(body: bytes) -> str:
    match = re.search(rb"<Code>(\w+)</Code>", body)
    return match[1].decode() if match else ""


@pytest.fixture(autouse=True)
def stored(raw: RawClient) -> None:
    assert raw("PUT", "/bucket/data", DATA)[0] == 200


def test_get_and_head(raw: RawClient) -> None:
    status, headers, body = raw("GET", "/bucket/data")
    assert (status, body) == (200, DATA)
    head_status, head_headers, head_body = raw("HEAD", "/bucket/data")
    assert (head_status, head_body) == (200, b"")
    assert head_headers["content-length"] == str(len(DATA))
    assert head_headers["etag"] == headers["etag"]


@pytest.mark.parametrize(
    ("header", "expected", "content_range"),
    [
        ("bytes=0-0", DATA[:1], "bytes 0-0/10240"),
        ("bytes=1000-", DATA[1000:], "bytes 1000-10239/10240"),
        ("bytes=-300", DATA[-300:], "bytes 9940-10239/10240"),
    ],
)
def test_ranges(raw: RawClient, header: str, expected: bytes, content_range: str) -> None:
    status, headers, body = raw("GET", "/bucket/data", headers={"Range": header})
    assert (status, body, headers["content-range"]) == (206, expected, content_range)
    status, headers, _ = raw("HEAD", "/bucket/data", headers={"Range": header})
    assert (status, headers["content-length"]) == (206, str(len(expected)))


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "expected"),
    [
        ("GET", "/bucket/none", {}, 404, "NoSuchKey"),
        ("GET", "/none/data", {}, 404, "NoSuchBucket"),
        ("GET", "/bucket/data", {"Range": "bytes=10240-"}, 416, "InvalidRange"),
        ("GET", "/bucket/data", {"If-Match": '"no"'}, 412, "PreconditionFailed"),
        ("PUT", "/bucket/data", {"If-None-Match": "*"}, 412, "PreconditionFailed"),
        ("PUT", "/bucket/data", {"If-Match": '"no"'}, 412, "PreconditionFailed"),
        ("PUT", "/bucket/x", {"x-amz-checksum-crc32": crc32(b"no")}, 400, "BadDigest"),
        ("PUT", "/bucket/x", {"Content-MD5": "AAAAAAAAAAAAAAAAAAAAAA=="}, 400, "BadDigest"),
        ("PUT", "/bucket/x", {"Content-Length": str(6 << 30)}, 400, "EntityTooLarge"),
        ("PUT", "/bucket/x", {"x-amz-copy-source": "bucket/none"}, 404, "NoSuchKey"),
        ("POST", "/bucket/data", {}, 405, "MethodNotAllowed"),
        ("GET", "/bucket/data", {"Authorization": "AWS4-HMAC-SHA256 Credential=x/y"}, 403, "InvalidAccessKeyId"),
        ("GET", "/bucket/data", {"Authorization": ""}, 403, "AccessDenied"),
    ],
)
def test_refusals(raw: RawClient, method: str, path: str, headers: dict[str, str], status: int, expected: str) -> None:
    answer = raw(method, path, b"" if method == "PUT" else None, headers)
    assert (answer[0], code(answer[2])) == (status, expected)


def test_not_modified(raw: RawClient) -> None:
    etag = raw("HEAD", "/bucket/data")[1]["etag"]
    status, headers, body = raw("GET", "/bucket/data", headers={"If-None-Match": etag})
    assert (status, headers["etag"], body) == (304, etag, b"")


def test_a_refused_write_changes_nothing(raw: RawClient) -> None:
    assert raw("PUT", "/bucket/data", b"other", {"x-amz-checksum-crc32": crc32(DATA)})[0] == 400
    assert raw("GET", "/bucket/data")[2] == DATA


def test_checksums_and_metadata_come_back(raw: RawClient) -> None:
    sent = {"x-amz-checksum-crc32": crc32(b"x"), "x-amz-meta-colour": "blue", "Content-Type": "text/plain"}
    assert raw("PUT", "/bucket/meta", b"x", sent)[1]["x-amz-checksum-crc32"] == crc32(b"x")
    assert "x-amz-checksum-crc32" not in raw("GET", "/bucket/meta")[1]
    headers = raw("GET", "/bucket/meta", headers={"x-amz-checksum-mode": "ENABLED"})[1]
    assert {name.lower(): headers[name.lower()] for name in sent} == {
        name.lower(): value for name, value in sent.items()
    }


def test_copy_keeps_or_replaces_metadata(raw: RawClient) -> None:
    raw("PUT", "/bucket/a%20b", b"x", {"x-amz-meta-colour": "blue"})
    copy = {"x-amz-copy-source": "/bucket/a%20b"}
    assert raw("PUT", "/bucket/copy", b"", copy)[0] == 200
    status, headers, body = raw("GET", "/bucket/copy")
    assert (status, headers["x-amz-meta-colour"], body) == (200, "blue", b"x")
    raw("PUT", "/bucket/copy", b"", {**copy, "x-amz-metadata-directive": "REPLACE"})
    assert "x-amz-meta-colour" not in raw("HEAD", "/bucket/copy")[1]


def test_delete(raw: RawClient) -> None:
    assert [raw("DELETE", "/bucket/data")[0] for _ in range(2)] == [204, 204]
    assert raw("HEAD", "/bucket/data")[0] == 404


AWS_CHUNKED = b"3\r\nabc\r\n2\r\nde\r\n0\r\nx-amz-checksum-crc32:%s\r\n\r\n"
STREAMED = {"Content-Encoding": "aws-chunked", "x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER"}


def test_aws_chunks_with_a_trailer(raw: RawClient) -> None:
    body = AWS_CHUNKED % crc32(b"abcde").encode()
    status, headers, _ = raw("PUT", "/bucket/chunked", body, {**STREAMED, "x-amz-decoded-content-length": "5"})
    assert (status, headers["x-amz-checksum-crc32"]) == (200, crc32(b"abcde"))
    assert raw("GET", "/bucket/chunked")[2] == b"abcde"
    assert "content-encoding" not in raw("HEAD", "/bucket/chunked")[1]


def test_a_wrong_trailer_is_noticed(raw: RawClient) -> None:
    status, _, body = raw("PUT", "/bucket/chunked", AWS_CHUNKED % crc32(b"no").encode(), STREAMED)
    assert (status, code(body)) == (400, "BadDigest")


def test_http_chunks(raw: RawClient) -> None:
    connection = http.client.HTTPConnection(raw.netloc, timeout=30)
    headers = {"Authorization": AUTHORIZATION}
    connection.request("PUT", "/bucket/chunked", iter([b"abc", b"de"]), headers, encode_chunked=True)
    assert connection.getresponse().read() == b""
    connection.request("GET", "/bucket/chunked", headers=headers)
    assert connection.getresponse().read() == b"abcde"
    connection.close()
