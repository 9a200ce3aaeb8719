from __future__ import annotations

import pytest

from aiockpt.testing.answers import Refusal
from aiockpt.testing.requests import Request, operation_of, parse_request


def head(line: str, *headers: str) -> bytes:
    return "\r\n".join([f"{line} HTTP/1.1", *headers, "", ""]).encode("latin-1")


def test_a_head_is_taken_apart() -> None:
    request = parse_request(
        head("PUT /bucket/a%20b//c?uploadId=x%2Fy&partNumber=3", "X-Thing:  1 ", "Content-Length: 7")
    )
    assert (request.method, request.bucket, request.key) == ("PUT", "bucket", "a b//c")
    assert request.query == {"uploadId": "x/y", "partNumber": "3"}
    assert request.header("x-thing") == "1"
    assert request.content_length == 7
    assert request.keep_alive
    assert not parse_request(head("GET /", "Connection: close")).keep_alive


@pytest.mark.parametrize("bad", [b"", b"nonsense\r\n\r\n", head("GET /%ff"), head("GET /a\xff"), head("BREW /")])
def test_malformed_heads_are_refused(bad: bytes) -> None:
    with pytest.raises(Refusal, match="InvalidURI"):
        parse_request(bad)


@pytest.mark.parametrize(
    ("line", "header", "expected"),
    [
        ("GET /", "", "ListBuckets"),
        ("GET /b?list-type=2", "", "ListObjectsV2"),
        ("GET /b/?uploads", "", "ListMultipartUploads"),
        ("POST /b?delete", "", "DeleteObjects"),
        ("GET /b/k", "", "GetObject"),
        ("PUT /b/k", "", "PutObject"),
        ("PUT /b/k", "x-amz-copy-source: /b/j", "CopyObject"),
        ("PUT /b/k?uploadId=1&partNumber=1", "", "UploadPart"),
        ("PUT /b/k?uploadId=1&partNumber=1", "x-amz-copy-source: /b/j", "UploadPartCopy"),
        ("POST /b/k?uploads", "", "CreateMultipartUpload"),
        ("POST /b/k?uploadId=1", "", "CompleteMultipartUpload"),
        ("DELETE /b/k?uploadId=1", "", "AbortMultipartUpload"),
        ("DELETE /b/k", "", "DeleteObject"),
        ("GET /b/k?uploadId=1", "", "ListParts"),
    ],
)
def test_operations(line: str, header: str, expected: str) -> None:
    assert operation_of(parse_request(head(line, *([header] if header else [])))) == expected


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("GET /b", "NotImplemented"),
        ("GET /b/k?tagging", "NotImplemented"),
        ("POST /b/k", "MethodNotAllowed"),
        ("DELETE /", "MethodNotAllowed"),
        (f"GET /b/{'k' * 1025}", "KeyTooLongError"),
    ],
)
def test_what_is_no_operation(line: str, code: str) -> None:
    with pytest.raises(Refusal, match=code):
        operation_of(parse_request(head(line)))


@pytest.mark.parametrize(
    ("line", "header", "expected"),
    [
        ("GET /", "", None),
        ("GET /", "Authorization: AWS4-HMAC-SHA256 Credential=me/20260101/r/s3/aws4_request", "me"),
        ("GET /", "Authorization: Basic x", ""),
        ("GET /?X-Amz-Credential=me%2F20260101", "", "me"),
    ],
)
def test_who_signed(line: str, header: str, expected: str | None) -> None:
    assert parse_request(head(line, *([header] if header else []))).access_key == expected


def test_a_length_is_a_number() -> None:
    request = Request("PUT", "", "b", "k", {}, {"content-length": "one"}, keep_alive=True)
    with pytest.raises(Refusal, match="InvalidArgument"):
        _ = request.content_length
