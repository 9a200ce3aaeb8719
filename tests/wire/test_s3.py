from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiockpt.errors import LocalProtocolError, RemoteProtocolError
from aiockpt.model import ByteRange
from aiockpt.wire.s3 import (
    MAX_ERROR_BYTES,
    ErrorDocument,
    bare_etag,
    crc32_header,
    encode_key,
    if_match,
    parse_content_range,
    parse_crc32_header,
    parse_error,
    part_etag,
    range_header,
)


def test_the_etag_of_a_part_is_the_services_own() -> None:
    assert part_etag('W/"abc"') == part_etag('"abc"') == '"abc"'


def test_range_header_has_an_inclusive_end() -> None:
    assert range_header(ByteRange(0, 1)) == "bytes=0-0"
    assert range_header(ByteRange(7, 2**40)) == f"bytes=7-{2**40 - 1}"


def test_range_header_refuses_an_empty_range() -> None:
    with pytest.raises(LocalProtocolError):
        range_header(ByteRange(3, 3))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bytes 0-0/1", (ByteRange(0, 1), 1)),
        ("bytes 5-9/100", (ByteRange(5, 10), 100)),
        ("Bytes  5-9/*", (ByteRange(5, 10), None)),
    ],
)
def test_parse_content_range(value: str, expected: tuple[ByteRange, int | None]) -> None:
    assert parse_content_range(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        "",
        "bytes */100",
        "bytes 5-4/100",
        "bytes 5-100/100",
        "bytes 5-/100",
        "items 0-1/2",
        "bytes 0-1",
        "bytes 0-1/2x",
        f"bytes 0-{'9' * 5000}/*",
        "bytes \u0660-\u0661/\u0662",
    ],
)
def test_parse_content_range_refuses(value: str) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_content_range(value)


@given(start=st.integers(0, 2**50), length=st.integers(1, 2**45))
def test_content_range_is_the_inverse_of_range(start: int, length: int) -> None:
    wanted = ByteRange(start, start + length)
    answer = range_header(wanted).replace("=", " ") + f"/{start + length}"
    assert parse_content_range(answer) == (wanted, start + length)


@pytest.mark.parametrize(("crc32", "header"), [(0, "AAAAAA=="), (0xCBF43926, "y/Q5Jg=="), (0xFFFFFFFF, "/////w==")])
def test_crc32_header(crc32: int, header: str) -> None:
    assert crc32_header(crc32) == header
    assert parse_crc32_header(header) == crc32


def test_a_composite_checksum_is_not_the_object_s() -> None:
    assert parse_crc32_header("y/Q5Jg==-3") is None


@pytest.mark.parametrize("value", ["", "AAAA", "y/Q5Jg", "!!!!!!==", "y/Q5Jg==-", "AAAAAAAA", "\u00e9"])
def test_parse_crc32_header_refuses(value: str) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_crc32_header(value)


@pytest.mark.parametrize(
    ("key", "encoded"),
    [
        ("a/b-c_d.e~f/0", "a/b-c_d.e~f/0"),
        ("a b+c%d", "a%20b%2Bc%25d"),
        ("//../é€", "//../%C3%A9%E2%82%AC"),
        ("?#&=:@!$'()*,;", "%3F%23%26%3D%3A%40%21%24%27%28%29%2A%2C%3B"),
        ("\n\x7f", "%0A%7F"),
        ("", ""),
    ],
)
def test_encode_key(key: str, encoded: str) -> None:
    assert encode_key(key) == encoded


_FIELDS = "<Code>NoSuchKey</Code><Message>Not here &amp; not there</Message><RequestId> r1 </RequestId>"
_DOCUMENT = ErrorDocument("NoSuchKey", "Not here & not there", "r1")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (f"<?xml version='1.0' encoding='UTF-8'?>\n<Error>{_FIELDS}</Error>", _DOCUMENT),
        (f"\ufeff<Error>{_FIELDS}</Error>", _DOCUMENT),
        (f"<Error xmlns='http://s3.amazonaws.com/doc/2006-03-01/'>{_FIELDS}</Error>", _DOCUMENT),
        (f"<ErrorResponse xmlns='u'><Error>{_FIELDS}</Error></ErrorResponse>", _DOCUMENT),
        (
            "<ErrorResponse><Error><Type>Sender</Type><Code>Slow</Code></Error><RequestId>r</RequestId></ErrorResponse>",
            ErrorDocument(code="Slow", request_id="r"),
        ),
        (
            "<Error><Code>PermanentRedirect</Code><Endpoint>b.s3.eu-central-1.amazonaws.com</Endpoint></Error>",
            ErrorDocument(code="PermanentRedirect", endpoint="b.s3.eu-central-1.amazonaws.com"),
        ),
        (
            "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>",
            ErrorDocument(code="AuthorizationHeaderMalformed", region="eu-west-1"),
        ),
        ("<Error/>", ErrorDocument()),
        ("<Error><Code/></Error>", ErrorDocument()),
    ],
)
def test_parse_error(body: str, expected: ErrorDocument) -> None:
    assert parse_error(body.encode()) == expected


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html><Code>x</Code></html>",
        b"<Error><Code>x</Code>",
        b"not xml",
        b"\xff\xfe<",
        b"<ListBucketResult><Code>x</Code></ListBucketResult>",
        b'<!DOCTYPE Error [<!ENTITY a "x">]><Error><Code>&a;</Code></Error>',
        b"<Error><Code>&a;</Code></Error>",
        "<?xml version='1.0'?><!DOCTYPE Error [<!ENTITY a 'x'>]><Error><Code>&a;</Code></Error>".encode("utf-16"),
        b"<Error><Code>x</Code>" + b" " * MAX_ERROR_BYTES + b"</Error>",
    ],
)
def test_parse_error_finds_nothing_in_anything_else(body: bytes) -> None:
    assert parse_error(body) == ErrorDocument()


_pieces = st.sampled_from(
    [b"<Error>", b"</Error>", b"<Code>", b"</Code>", b"<?xml version='1.0' encoding='x'?>", b"<!--"]
)


@given(st.lists(_pieces | st.binary(max_size=6), max_size=10).map(b"".join))
def test_parse_error_is_total(body: bytes) -> None:
    assert isinstance(parse_error(body), ErrorDocument)


def test_parse_error_survives_depth() -> None:
    depth = MAX_ERROR_BYTES // 8
    assert parse_error(b"<Error>" + b"<a>" * depth + b"</a>" * depth + b"</Error>") == ErrorDocument()


@pytest.mark.parametrize(
    ("value", "bare", "condition"),
    [
        ('"e"', "e", '"e"'),
        ("e", "e", '"e"'),
        ('"a-2"', "a-2", '"a-2"'),
        ('W/"e"', 'W/"e"', ""),  # weak: to be compared, never to be sent
        (None, "", ""),
        ("", "", ""),
    ],
)
def test_etags(value: str | None, bare: str, condition: str) -> None:
    assert bare_etag(value) == bare
    assert if_match(bare) == condition
