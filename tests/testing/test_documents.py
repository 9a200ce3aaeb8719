from __future__ import annotations

import pytest

from aiockpt.testing.answers import Refusal
from aiockpt.testing.documents import (
    PartReference,
    element,
    error,
    leaf,
    optional,
    parse_complete,
    parse_delete,
    root,
    timestamp,
)
from aiockpt.wire.s3 import parse_error


def test_text_is_escaped() -> None:
    assert element("A", leaf("B", "<&"), leaf("C", True), optional("D", "")) == "<A><B>&lt;&amp;</B><C>true</C></A>"
    assert root("R").endswith(b'<R xmlns="http://s3.amazonaws.com/doc/2006-03-01/"></R>')


def test_our_client_reads_our_errors() -> None:
    document = parse_error(error(Refusal("NoSuchKey"), "/b/k", "id"))
    assert (document.code, document.request_id) == ("NoSuchKey", "id")


def test_times() -> None:
    assert timestamp(0.5) == "1970-01-01T00:00:00.500Z"


def test_complete() -> None:
    body = (
        b'<CompleteMultipartUpload xmlns="x"><Part><ETag>"e"</ETag><PartNumber>2</PartNumber>'
        b"<ChecksumCRC32>AAAAAA==</ChecksumCRC32></Part></CompleteMultipartUpload>"
    )
    assert parse_complete(body) == [PartReference(2, '"e"', {"crc32": "AAAAAA=="})]


def test_delete() -> None:
    body = b"<Delete><Quiet>true</Quiet><Object><Key>a</Key></Object><Object><Key>b</Key></Object></Delete>"
    assert parse_delete(body) == (["a", "b"], True)


@pytest.mark.parametrize("body", [b"", b"<a>", b"\xff", b"<!DOCTYPE a><a/>", b"<a/>", b"<a><Part/></a>"])
def test_malformed(body: bytes) -> None:
    for parse in (parse_complete, parse_delete):
        with pytest.raises(Refusal, match="MalformedXML"):
            parse(body)
