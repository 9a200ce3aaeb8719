"""Any bytes as a response: a head and a body, or ``RemoteProtocolError``; however they are cut; in little memory."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from aiockpt.errors import RemoteProtocolError
from aiockpt.model import KiB
from aiockpt.wire.http1 import ChunkedBody, Framing, ResponseHead, framing, head_end, parse_head
from fuzz.mutations import little_memory, mutated

HEADS = [
    b'HTTP/1.1 206 Partial Content\r\nContent-Length: 5\r\nContent-Range: bytes 0-4/7\r\nETag: "e"\r\n\r\n',
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\nServer: x\r\n\r\n",
    b"HTTP/1.0 503 Slow Down\r\nRetry-After: 7\r\nConnection: keep-alive\r\nX: a\r\nX: b\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
]
BODIES = [
    b"5\r\nhello\r\n0\r\n\r\n",
    b"a;name=value\r\n0123456789\r\n5\r\nworld\r\n0\r\nx-amz-checksum-crc32: AAAAAA==\r\n\r\n",
    b"0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
]


def parsed(data: bytes) -> ResponseHead | None:
    try:
        return parse_head(data)
    except RemoteProtocolError:
        return None


@given(mutated(HEADS), st.sampled_from(["GET", "PUT", "HEAD"]))
def test_any_bytes_as_a_head(data: bytes, method: str) -> None:
    with little_memory(64 * KiB + 20 * len(data)):
        end = head_end(data, len(data))
        head = parsed(data if end < 0 else data[:end])
        if head is None:
            return
        assert end > 0
        assert 0 <= head.status <= 999
        try:
            kind, nbytes = framing(head, method)
        except RemoteProtocolError:
            return
    assert nbytes >= 0
    assert (nbytes == 0) or kind is Framing.LENGTH


def decoded(data: bytes, cuts: list[int]) -> tuple[bytes, bool, bytes] | None:
    """Payload, whether the body ended, and what follows; None for an error."""
    body = ChunkedBody()
    payload = b""
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    try:
        for start, end in itertools.pairwise(edges):
            payload += body.feed(data[start:end])
    except RemoteProtocolError:
        return None
    return payload, body.done, body.unused


@given(mutated(BODIES), st.lists(st.integers(0, 60), max_size=6))
def test_any_bytes_as_a_chunked_body_however_they_are_cut(data: bytes, cuts: list[int]) -> None:
    with little_memory(64 * KiB + 20 * len(data)):
        at_once = decoded(data, [])
        assert decoded(data, cuts) == at_once
    if at_once is not None:
        assert len(at_once[0]) + len(at_once[2]) <= len(data)
