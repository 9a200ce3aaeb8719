from __future__ import annotations

import re

import pytest

from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from testing.rawclient import RawClient

FULL = bytes(5 << 20)
LAST = b"the last part"


def create(raw: RawClient, **headers: str) -> str:
    body = raw("POST", "/bucket/big?uploads", headers={name.replace("_", "-"): text for name, text in headers.items()})[
        2
    ]
    return found(rb"<UploadId>(.+?)</UploadId>", body)


def found(pattern: bytes, body: bytes) -> str:
    match = re.search(pattern, body)
    assert match is not None, body
    return match[1].decode()


def put(raw: RawClient, upload: str, number: int, data: bytes) -> str:
    status, headers, _ = raw("PUT", f"/bucket/big?uploadId={upload}&partNumber={number}", data)
    assert status == 200
    return headers["etag"]


def complete(
    raw: RawClient, upload: str, parts: list[tuple[int, str]], headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    listed = "".join(f"<Part><PartNumber>{n}</PartNumber><ETag>{etag}</ETag></Part>" for n, etag in parts)
    body = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
    status, _, answer = raw("POST", f"/bucket/big?uploadId={upload}", body, headers)
    return status, answer


@pytest.fixture
def upload(raw: RawClient) -> str:
    raw("DELETE", "/bucket/big")
    return create(raw)


def test_parts_become_an_object(endpoint: LocalEndpoint, raw: RawClient, upload: str) -> None:
    parts = [(2, put(raw, upload, 2, LAST)), (1, put(raw, upload, 1, FULL))]
    assert endpoint.stats().uploads_open >= 1
    status, answer = complete(raw, upload, sorted(parts))
    assert (status, found(rb"<ETag>(.+?)</ETag>", answer)[-3:]) == (200, '-2"')
    _, headers, body = raw("GET", "/bucket/big")
    assert (headers["etag"][-3:], body) == ('-2"', FULL + LAST)
    spanning = raw("GET", "/bucket/big", headers={"Range": f"bytes={len(FULL) - 2}-{len(FULL) + 2}"})[2]
    assert spanning == b"\0\0the"
    assert complete(raw, upload, parts)[0] == 404


def test_opaque_etags(endpoint: LocalEndpoint, raw: RawClient, upload: str) -> None:
    """The same bytes have another one each time, and the last one counts."""
    endpoint.add_fault(Fault(FaultKind.OPAQUE_ETAG, "UploadPart", count=2))
    first, second = put(raw, upload, 1, LAST), put(raw, upload, 1, LAST)
    assert len({first, second, put(raw, upload, 2, LAST)}) == 3
    assert complete(raw, upload, [(1, first)])[0] == 400
    assert complete(raw, upload, [(1, second)])[0] == 200


@pytest.mark.parametrize(
    ("chosen", "code"),
    [
        ([2, 1], b"InvalidPartOrder"),
        ([1, 1], b"InvalidPartOrder"),
        ([1, 3], b"InvalidPart"),
        ([2, 4], b"EntityTooSmall"),
        ([], b"MalformedXML"),
    ],
)
def test_the_rules_of_completing(raw: RawClient, upload: str, chosen: list[int], code: bytes) -> None:
    etags = {number: put(raw, upload, number, LAST) for number in (1, 2, 4)}
    status, answer = complete(raw, upload, [(number, etags.get(number, '"none"')) for number in chosen])
    assert status == 400
    assert b"<Code>" + code + b"</Code>" in answer


def test_a_part_with_another_etag_is_none(raw: RawClient, upload: str) -> None:
    put(raw, upload, 1, LAST)
    assert b"InvalidPart" in complete(raw, upload, [(1, '"other"')])[1]


def test_conditions_checksum_and_size(raw: RawClient) -> None:
    upload = create(raw, x_amz_checksum_algorithm="CRC32", x_amz_checksum_type="FULL_OBJECT")
    parts = [(1, put(raw, upload, 1, b"abc"))]
    raw("PUT", "/bucket/big", b"there")
    assert complete(raw, upload, parts, {"If-None-Match": "*"})[0] == 412
    assert b"BadDigest" in complete(raw, upload, parts, {"x-amz-checksum-crc32": "AAAAAA=="})[1]
    assert b"InvalidRequest" in complete(raw, upload, parts, {"x-amz-mp-object-size": "4"})[1]
    status, answer = complete(raw, upload, parts, {"x-amz-checksum-crc32": "NSRBwg=="})
    assert (status, found(rb"<ChecksumCRC32>(.+?)<", answer)) == (200, "NSRBwg==")


def test_composite_checksums(raw: RawClient) -> None:
    upload = create(raw, x_amz_checksum_algorithm="CRC32")
    _, answer = complete(raw, upload, [(1, put(raw, upload, 1, b"abc"))])
    assert found(rb"<ChecksumCRC32>(.+?)<", answer).endswith("==-1")
    assert found(rb"<ChecksumType>(.+?)<", answer) == "COMPOSITE"


def test_abort(endpoint: LocalEndpoint, raw: RawClient, upload: str) -> None:
    put(raw, upload, 1, LAST)
    before = endpoint.stats().uploads_open
    assert [raw("DELETE", f"/bucket/big?uploadId={upload}")[0] for _ in range(2)] == [204, 404]
    assert endpoint.stats().uploads_open == before - 1
    assert raw("PUT", f"/bucket/big?uploadId={upload}&partNumber=1", b"x")[0] == 404


def test_copied_parts(raw: RawClient, upload: str) -> None:
    raw("PUT", "/bucket/source", b"0123456789")
    target = f"/bucket/big?uploadId={upload}&partNumber=1"
    copy = {"x-amz-copy-source": "bucket/source", "x-amz-copy-source-range": "bytes=2-4"}
    etag = found(rb"<ETag>(.+?)</ETag>", raw("PUT", target, b"", copy)[2])
    assert raw("PUT", target, b"", {**copy, "x-amz-copy-source-range": "bytes=2-10"})[0] == 400
    assert complete(raw, upload, [(1, etag)])[0] == 200
    assert raw("GET", "/bucket/big")[2] == b"234"


def test_listing_parts_and_uploads(raw: RawClient, upload: str) -> None:
    for number in (1, 2, 3):
        put(raw, upload, number, LAST)
    page = raw("GET", f"/bucket/big?uploadId={upload}&max-parts=2")[2]
    assert re.findall(rb"<PartNumber>(\d+)<", page) == [b"1", b"2"]
    assert b"<IsTruncated>true</IsTruncated>" in page
    rest = raw("GET", f"/bucket/big?uploadId={upload}&part-number-marker=2")[2]
    assert re.findall(rb"<PartNumber>(\d+)<", rest) == [b"3"]
    other = create(raw)
    listed = re.findall(rb"<UploadId>(.+?)<", raw("GET", "/bucket?uploads&prefix=big")[2])
    assert {upload.encode(), other.encode()} <= set(listed)
    behind = raw("GET", f"/bucket?uploads&key-marker=big&upload-id-marker={upload}")[2]
    assert re.findall(rb"<UploadId>(.+?)<", behind) == [other.encode()]


def test_a_part_number_out_of_range(raw: RawClient, upload: str) -> None:
    assert raw("PUT", f"/bucket/big?uploadId={upload}&partNumber=10001", b"x")[0] == 400


def test_an_error_in_the_answer_to_complete(endpoint: LocalEndpoint, raw: RawClient, upload: str) -> None:
    endpoint.add_fault(Fault(FaultKind.ERROR_IN_200, operation="CompleteMultipartUpload", code="InternalError"))
    parts = [(1, put(raw, upload, 1, b"x"))]
    status, answer = complete(raw, upload, parts)
    assert (status, b"<Code>InternalError</Code>" in answer) == (200, True)
    assert complete(raw, upload, parts)[0] == 200
