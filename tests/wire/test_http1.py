from __future__ import annotations

import itertools
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiockpt.errors import LocalProtocolError, RemoteProtocolError
from aiockpt.wire.http1 import (
    MAX_HEAD_BYTES,
    MAX_LINE_BYTES,
    MAX_TRAILER_BYTES,
    ChunkedBody,
    Framing,
    ResponseHead,
    framing,
    head_end,
    parse_head,
    request_head,
    retry_after_s,
)

OK = b'HTTP/1.1 206 Partial Content\r\nContent-Length: 5\r\nETag: "e"\r\n\r\n'


def head(status: int = 200, **headers: str) -> ResponseHead:
    return ResponseHead(status, "", {name.replace("_", "-"): value for name, value in headers.items()}, True)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(c, len(data)) for c in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


# -- head_end


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_head_end_is_just_past_the_blank_line(kind: type[bytes]) -> None:
    assert head_end(kind(OK + b"body"), len(OK) + 4) == len(OK)
    assert head_end(kind(b"x" * 7 + OK), 7 + len(OK), 7) == 7 + len(OK)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_head_end_does_not_look_past_what_has_arrived(kind: type[bytes]) -> None:
    assert head_end(kind(OK), len(OK) - 1) == -1
    assert head_end(kind(b""), 0) == -1


@given(cuts=st.lists(st.integers(0, len(OK)), max_size=6))
def test_head_end_is_found_once_however_the_head_is_cut(cuts: list[int]) -> None:
    buffer = bytearray(len(OK) + 10)
    length = 0
    found = []
    for piece in cut(OK, cuts):
        resume = max(0, length - 3)
        buffer[length : length + len(piece)] = piece
        length += len(piece)
        found.append(head_end(buffer, length, resume))
    assert len(OK) in found
    assert all(end == -1 for end, size in zip(found, _sums(cut(OK, cuts)), strict=True) if size < len(OK))


def _sums(pieces: list[bytes]) -> list[int]:
    return [sum(map(len, pieces[: i + 1])) for i in range(len(pieces))]


# -- parse_head


def test_parse_head_reads_status_reason_and_headers() -> None:
    parsed = parse_head(OK)
    assert parsed == ResponseHead(206, "Partial Content", {"content-length": "5", "etag": '"e"'}, True)


def test_parse_head_joins_repeated_headers_and_keeps_latin_1() -> None:
    parsed = parse_head(b"HTTP/1.1 200 OK\r\nX-A: 1 \r\nx-a:\t2\r\nX-B: \xe9\r\nX-C:\r\n\r\n")
    assert parsed.headers == {"x-a": "1, 2", "x-b": "\xe9", "x-c": ""}


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"HTTP/1.1 200 \r\nA: b\r\n\r\n", ""),
        (b"HTTP/1.1 200\r\nA: b\r\n\r\n", ""),
        (b"HTTP/1.1 200 OK\r\n\r\n", "OK"),
    ],
)
def test_parse_head_takes_a_missing_reason_and_no_headers(raw: bytes, reason: str) -> None:
    assert parse_head(raw).reason == reason


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: Close\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nConnection: x, close\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nConnection: x\r\nConnection: close\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n\r\n", True),
    ],
)
def test_parse_head_knows_whether_the_connection_lives_on(raw: bytes, expected: bool) -> None:
    assert parse_head(raw).keep_alive is expected


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\r\n\r\n",
        b"\r\n" + OK,
        OK[:-1],
        OK + b"x",
        OK + OK,
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.2 200 OK\r\n\r\n",
        b"HTTP/0.9 200 OK\r\n\r\n",
        b"RTSP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.1 99 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: no name\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: \x00\r\n\r\n",
        b"HTTP/1.1 200 OK\nA: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_parse_head_refuses_what_is_no_response_head(raw: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_head(raw)


def test_parse_head_takes_a_head_of_the_limit_and_no_more() -> None:
    frame = b"HTTP/1.1 200 OK\r\nA: %b\r\n\r\n"
    fill = MAX_HEAD_BYTES - len(frame) + 2
    assert len(parse_head(frame % (b"a" * fill)).headers["a"]) == fill
    with pytest.raises(RemoteProtocolError):
        parse_head(frame % (b"a" * (fill + 1)))


_fragments = st.sampled_from(
    b"HTTP/1.1 200 OK\r\n|HTTP/1.0| |\r\n|A: b\r\n|Content-Length: |12|chunked|Transfer-Encoding: |\n|\x00"
    b"|101|Upgrade: x\r\n|Connection: upgrade\r\n".split(b"|")
)


@given(st.lists(_fragments | st.binary(max_size=8), max_size=12).map(b"".join))
def test_parse_head_ends_in_a_head_or_in_remote_protocol_error(noise: bytes) -> None:
    for raw in (noise, b"HTTP/1.1 200 OK\r\n" + noise + b"\r\n\r\n", b"HTTP/1.1 " + noise + b"\r\n\r\n"):
        try:
            parsed = parse_head(raw)
            framing(parsed, "GET")
        except RemoteProtocolError:
            continue
        assert 100 <= parsed.status <= 999
        assert all(name == name.lower() for name in parsed.headers)


# -- framing


@pytest.mark.parametrize(
    ("method", "response", "expected"),
    [
        ("GET", head(content_length="5"), (Framing.LENGTH, 5)),
        ("GET", head(content_length="0"), (Framing.LENGTH, 0)),
        ("GET", head(content_length="5, 5"), (Framing.LENGTH, 5)),
        ("GET", head(transfer_encoding="Chunked"), (Framing.CHUNKED, 0)),
        ("GET", head(), (Framing.UNTIL_CLOSE, 0)),
        ("HEAD", head(content_length="5"), (Framing.EMPTY, 0)),
        ("HEAD", head(), (Framing.EMPTY, 0)),
        ("GET", head(204), (Framing.EMPTY, 0)),
        ("GET", head(304, content_length="5"), (Framing.EMPTY, 0)),
        ("PUT", head(100), (Framing.EMPTY, 0)),
        ("DELETE", head(199), (Framing.EMPTY, 0)),
    ],
)
def test_framing(method: str, response: ResponseHead, expected: tuple[Framing, int]) -> None:
    assert framing(response, method) == expected


@pytest.mark.parametrize(
    "response",
    [
        head(content_length="5, 6"),
        head(content_length="-5"),
        head(content_length="+5"),
        head(content_length=""),
        head(content_length="5 5"),
        head(content_length="\u0665"),
        head(content_length="9" * 5000),
        head(transfer_encoding="gzip, chunked"),
        head(transfer_encoding="identity"),
        head(transfer_encoding="chunked", content_length="5"),
    ],
)
def test_framing_refuses_contradictions(response: ResponseHead) -> None:
    with pytest.raises(RemoteProtocolError):
        framing(response, "GET")


# -- ChunkedBody


def decode(pieces: list[bytes]) -> tuple[bytes, bool, bytes]:
    body = ChunkedBody()
    payload = b"".join(body.feed(memoryview(piece)) for piece in pieces)
    return payload, body.done, body.unused


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"0\r\n\r\n", (b"", True, b"")),
        (b"5\r\nhello\r\n0\r\n\r\n", (b"hello", True, b"")),
        (b'A;x="y"\r\n0123456789\r\n000\r\nT: v\r\nU: w\r\n\r\nHTTP', (b"0123456789", True, b"HTTP")),
        (b"2 \t;x\r\n\r\n\r\n0\r\n\r\n", (b"\r\n", True, b"")),
        (b"5\r\nhel", (b"hel", False, b"")),
        (b"5\r\nhello\r\n0\r\n", (b"hello", False, b"")),
    ],
)
def test_chunked_body_decodes(raw: bytes, expected: tuple[bytes, bool, bytes]) -> None:
    assert decode([raw]) == expected
    assert decode([raw[i : i + 1] for i in range(len(raw))]) == expected


@pytest.mark.parametrize(
    "raw",
    [
        b"\r\n",
        b"x\r\n",
        b"-1\r\n",
        b"0x5\r\n",
        b"5 5\r\n",
        b"5\nhello\r\n",
        b"5;a\nb\r\nhello",
        b"1" * 16 + b"\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5\r\nhello\n\n",
        b"5;" + b"x" * MAX_LINE_BYTES,
        b"0\r\n" + b"x" * (MAX_LINE_BYTES + 2),
        b"0\r\n" + (b"x" * 1022 + b"\r\n") * (MAX_TRAILER_BYTES // 1022 + 1),
    ],
)
def test_chunked_body_refuses(raw: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode([raw])
    with pytest.raises(RemoteProtocolError):
        decode([raw[i : i + 1] for i in range(len(raw))])


def test_chunked_body_collects_what_follows_its_end() -> None:
    body = ChunkedBody()
    body.feed(b"0\r\n\r\nHT")
    assert body.feed(b"TP") == b""
    assert body.unused == b"HTTP"


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=40), max_size=5),
    trailers=st.sampled_from([b"", b"x-amz-checksum-crc32: AAAAAA==\r\n"]),
    rest=st.binary(max_size=5),
    cuts=st.lists(st.integers(0, 300), max_size=10),
)
def test_chunked_body_is_the_same_however_it_is_cut(
    chunks: list[bytes], trailers: bytes, rest: bytes, cuts: list[int]
) -> None:
    raw = b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + b"0\r\n" + trailers + b"\r\n" + rest
    assert decode(cut(raw, cuts)) == (b"".join(chunks), True, rest)


@given(
    raw=st.binary(max_size=60) | st.text("05aF;\r\n x", max_size=60).map(str.encode),
    cuts=st.lists(st.integers(0, 60)),
)
def test_chunked_body_fails_the_same_however_it_is_cut(raw: bytes, cuts: list[int]) -> None:
    def outcome(pieces: list[bytes]) -> tuple[bytes, bool, bytes] | None:
        try:
            return decode(pieces)
        except RemoteProtocolError:
            return None

    assert outcome([raw]) == outcome(cut(raw, cuts))


# -- request_head


def test_request_head_keeps_the_order_of_headers() -> None:
    made = request_head("GET", "/b/k%20?x=1", [("Host", "h:1"), ("Range", "bytes=0-1"), ("x-amz-e", "\xe9")])
    assert made == b"GET /b/k%20?x=1 HTTP/1.1\r\nHost: h:1\r\nRange: bytes=0-1\r\nx-amz-e: \xe9\r\n\r\n"


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        ("GET\r\n", "/", []),
        ("", "/", []),
        ("get", "/", []),
        ("GET", "", []),
        ("GET", "/a b", []),
        ("GET", "/a\r\nX: y", []),
        ("GET", "/\u00e9", []),
        ("GET", "/", [("A\r\nB", "c")]),
        ("GET", "/", [("A:", "c")]),
        ("GET", "/", [("", "c")]),
        ("GET", "/", [("A", "c\r\nX: y")]),
        ("GET", "/", [("A", "c\n")]),
        ("GET", "/", [("A", "c\x00")]),
        ("GET", "/", [("A", "\u20ac")]),
    ],
)
def test_request_head_refuses_what_would_break_the_request(
    method: str, target: str, headers: list[tuple[str, str]]
) -> None:
    with pytest.raises(LocalProtocolError):
        request_head(method, target, headers)


def test_request_head_does_not_show_secrets_in_errors() -> None:
    with pytest.raises(LocalProtocolError) as raised:
        request_head("GET", "/?X-Amz-Signature=secret", [("Authorization", "secret\u20ac")])
    assert "secret" not in repr(raised.value)
    assert raised.value.__cause__ is None


# -- retry_after_s

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 0),
        ({"retry-after": "0"}, 0),
        ({"retry-after": "120"}, 120),
        ({"retry-after": " 7 "}, 7),
        ({"retry-after": "Sat, 21 Nov 2026 12:00:30 GMT"}, 30),
        ({"retry-after": "Sat, 21 Nov 2026 12:00:30 -0000"}, 30),
        ({"retry-after": "Sat, 21 Nov 2026 11:00:00 GMT"}, 0),  # over
        # by the server's own clock, which is not ours
        ({"retry-after": "Sat, 21 Nov 2026 12:00:30 GMT", "date": "Sat, 21 Nov 2026 12:00:25 GMT"}, 5),
        ({"retry-after": "Sat, 21 Nov 2026 12:00:30 GMT", "date": "yesterday"}, 30),
        *(({"retry-after": odd}, 0) for odd in ("soon", "-5", "1.5", "1e3", "9" * 40, "٣", "", "\x00", ",")),
    ],
)
def test_retry_after(headers: dict[str, str], expected: float) -> None:
    assert retry_after_s(headers, NOW) == expected


@given(st.text(st.characters(max_codepoint=255)), st.text(st.characters(max_codepoint=255)))
def test_retry_after_is_total(value: str, date: str) -> None:
    assert retry_after_s({"retry-after": value, "date": date}, NOW) >= 0
