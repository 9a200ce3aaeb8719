from __future__ import annotations

import http.client
import socket
import time

import pytest

from aiockpt.testing import Fault, FaultKind, LocalEndpoint, Shape
from testing.rawclient import AUTHORIZATION, RawClient

DATA = bytes(range(256)) * 4096  # 1 MiB
GET = f"GET /bucket/data HTTP/1.1\r\nHost: x\r\nAuthorization: {AUTHORIZATION}\r\n\r\n".encode()


@pytest.fixture(autouse=True)
def stored(endpoint: LocalEndpoint, raw: RawClient) -> None:
    endpoint.replace_object("bucket", "data", DATA)


def test_errors_with_retry_after(endpoint: LocalEndpoint, raw: RawClient) -> None:
    endpoint.add_fault(Fault(FaultKind.ERROR, operation="GetObject", retry_after_s=3, skip=1))
    statuses = [raw("GET", "/bucket/data") for _ in range(3)]
    assert [status for status, _, _ in statuses] == [200, 503, 200]
    assert statuses[1][1]["retry-after"] == "3"
    assert b"<Code>SlowDown</Code>" in statuses[1][2]
    assert endpoint.stats().errors == {"SlowDown": 1}
    assert endpoint.stats().faults == 1


@pytest.mark.parametrize("kind", [FaultKind.RESET, FaultKind.END_EARLY])
def test_an_answer_that_breaks_off(endpoint: LocalEndpoint, raw: RawClient, kind: FaultKind) -> None:
    endpoint.add_fault(Fault(kind, after_bytes=300_000))
    with raw.connect() as client:
        client.sendall(GET)
        received = bytearray()
        broken = False
        try:
            while chunk := client.recv(65536):
                received += chunk
        except ConnectionResetError:
            broken = True
    body = received.partition(b"\r\n\r\n")[2]
    assert bytes(body) == DATA[:300_000]
    assert broken == (kind is FaultKind.RESET)
    assert endpoint.requests()[0].body_bytes_out == 300_000


def test_a_reset_before_the_head(endpoint: LocalEndpoint, raw: RawClient) -> None:
    endpoint.add_fault(Fault(FaultKind.RESET, after_bytes=None))
    with raw.connect() as client:
        client.sendall(GET)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert endpoint.requests()[0].status == 0


def test_an_upload_that_is_cut_off(endpoint: LocalEndpoint, raw: RawClient) -> None:
    endpoint.add_fault(Fault(FaultKind.RESET, operation="PutObject", after_bytes=1000))
    with pytest.raises(ConnectionError):
        raw("PUT", "/bucket/cut", DATA)
    assert raw("HEAD", "/bucket/cut")[0] == 404
    assert endpoint.requests()[0].body_bytes_in == 1000


def test_a_stall_lasts_until_faults_are_cleared(endpoint: LocalEndpoint, raw: RawClient) -> None:
    endpoint.add_fault(Fault(FaultKind.STALL, after_bytes=1000))
    connection = http.client.HTTPConnection(raw.netloc, timeout=30)
    connection.request("GET", "/bucket/data", headers={"Authorization": AUTHORIZATION})
    response = connection.getresponse()
    assert response.read(1000) == DATA[:1000]
    assert connection.sock is not None
    connection.sock.settimeout(0.05)
    with pytest.raises(TimeoutError):
        connection.sock.recv(1)
    assert endpoint.stats().requests_current == 1
    connection.close()
    with raw.connect() as client:
        endpoint.add_fault(Fault(FaultKind.STALL, after_bytes=None))
        client.sendall(GET)
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.recv(1)
        endpoint.clear_faults()
        client.settimeout(30)
        assert client.recv(12) == b"HTTP/1.1 200"


def test_a_body_that_crawls_until_faults_are_cleared(endpoint: LocalEndpoint, raw: RawClient) -> None:
    endpoint.add_fault(Fault(FaultKind.CRAWL, "GetObject", after_bytes=1000, bytes_per_s=10_000))
    with raw.connect() as client:
        client.sendall(GET)
        received = b""
        while len(received.partition(b"\r\n\r\n")[2]) < 2000:
            received += client.recv(65536)
        assert len(received) < 100_000
        assert endpoint.stats().requests_current == 1
        endpoint.clear_faults()
        while len(body := received.partition(b"\r\n\r\n")[2]) < len(DATA):
            received += client.recv(65536)
    assert body == DATA


def test_crawling_takes_its_time(endpoint: LocalEndpoint, raw: RawClient) -> None:
    for operation in ("GetObject", "PutObject"):
        endpoint.add_fault(Fault(FaultKind.CRAWL, operation, bytes_per_s=len(DATA) / 0.2))
    assert took_s(raw, "GET", "/bucket/data") >= 0.15
    assert took_s(raw, "PUT", "/bucket/crawled", DATA) >= 0.15
    assert raw("GET", "/bucket/crawled")[2] == DATA


def test_a_late_answer(endpoint: LocalEndpoint, raw: RawClient) -> None:
    endpoint.add_fault(Fault(FaultKind.LATE, delay_s=0.1))
    assert took_s(raw, "GET", "/bucket/data") >= 0.1
    assert endpoint.stats().faults == 1


def test_a_client_that_leaves_a_stalled_upload_is_forgotten(endpoint: LocalEndpoint, raw: RawClient) -> None:
    endpoint.add_fault(Fault(FaultKind.STALL, operation="PutObject", after_bytes=10))
    with raw.connect() as client:
        head = f"PUT /bucket/x HTTP/1.1\r\nAuthorization: {AUTHORIZATION}\r\nContent-Length: 100\r\n\r\n"
        client.sendall(head.encode() + bytes(50))
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    assert endpoint.stats().requests_current == 0
    assert endpoint.requests()[0].body_bytes_in == 10


def test_a_bit_flipped_on_its_way(endpoint: LocalEndpoint, raw: RawClient) -> None:
    endpoint.add_fault(Fault(FaultKind.FLIP_BIT, operation="GetObject", after_bytes=5))
    assert raw("GET", "/bucket/data")[2] == DATA[:5] + b"\x04" + DATA[6:]
    assert raw("GET", "/bucket/data")[2] == DATA
    endpoint.add_fault(Fault(FaultKind.FLIP_BIT, operation="PutObject", after_bytes=0))
    raw("PUT", "/bucket/flipped", b"\0\0")
    assert raw("GET", "/bucket/flipped")[2] == b"\1\0"
    endpoint.add_fault(Fault(FaultKind.FLIP_BIT, operation="PutObject", after_bytes=0))
    status, _, _ = raw("PUT", "/bucket/flipped", b"\0\0", {"x-amz-checksum-crc32": "QdkS/w=="})
    assert status == 400


def test_a_bit_flipped_at_rest(endpoint: LocalEndpoint, raw: RawClient) -> None:
    etag = raw("HEAD", "/bucket/data")[1]["etag"]
    endpoint.flip_bit("bucket", "data", 5)
    _, headers, body = raw("GET", "/bucket/data")
    assert (headers["etag"], body) == (etag, DATA[:5] + b"\x04" + DATA[6:])


@pytest.mark.parametrize("error", [1, -1])
def test_a_wrong_length(endpoint: LocalEndpoint, raw: RawClient, error: int) -> None:
    endpoint.add_fault(Fault(FaultKind.WRONG_LENGTH, length_error=error))
    with raw.connect() as client:
        client.sendall(GET)
        received = bytearray()
        while chunk := client.recv(65536):
            received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(DATA) + error}".encode() in head
    assert body == DATA


def test_the_whole_object_for_a_range(endpoint: LocalEndpoint, raw: RawClient) -> None:
    endpoint.add_fault(Fault(FaultKind.WHOLE_OBJECT))
    status, headers, body = raw("GET", "/bucket/data", headers={"Range": "bytes=0-1"})
    assert (status, body) == (200, DATA)
    assert "content-range" not in headers


def test_an_error_in_a_200(endpoint: LocalEndpoint, raw: RawClient) -> None:
    endpoint.add_fault(Fault(FaultKind.ERROR_IN_200, code="InternalError"))
    status, _, body = raw("PUT", "/bucket/unwritten", b"x")
    assert status == 200
    assert b"<Code>InternalError</Code>" in body
    assert raw("HEAD", "/bucket/unwritten")[0] == 404


def test_a_lost_reply(endpoint: LocalEndpoint, raw: RawClient) -> None:
    endpoint.add_fault(Fault(FaultKind.LOST_REPLY))
    with pytest.raises(ConnectionError):
        raw("PUT", "/bucket/lost", b"x")
    assert raw("GET", "/bucket/lost")[2] == b"x"


def test_conditions_ignored(endpoint: LocalEndpoint, raw: RawClient) -> None:
    endpoint.add_fault(Fault(FaultKind.IGNORE_CONDITIONS, count=None))
    assert raw("PUT", "/bucket/data", b"new", {"If-None-Match": "*"})[0] == 200
    assert raw("GET", "/bucket/data", headers={"If-Match": '"old"'})[2] == b"new"


def test_an_empty_etag(endpoint: LocalEndpoint, raw: RawClient) -> None:
    endpoint.add_fault(Fault(FaultKind.EMPTY_ETAG, count=None))
    assert "etag" not in raw("HEAD", "/bucket/data")[1]
    assert b"<ETag></ETag>" in raw("PUT", "/bucket/copy", b"", {"x-amz-copy-source": "bucket/data"})[2]


def test_connections_are_kept_unless_they_are_to_be_closed(endpoint: LocalEndpoint, raw: RawClient) -> None:
    connection = http.client.HTTPConnection(raw.netloc, timeout=30)
    endpoint.add_fault(Fault(FaultKind.CLOSE, skip=1))
    closes = []
    for _ in range(3):
        connection.request("HEAD", "/bucket/data", headers={"Authorization": AUTHORIZATION})
        response = connection.getresponse()
        response.read()
        closes.append(response.will_close)
    connection.close()
    assert closes == [False, True, False]
    first, second, third = (record.connection for record in endpoint.requests())
    assert first == second != third
    assert endpoint.stats().connections_opened == 2


def test_an_early_request_waits_for_its_turn(raw: RawClient) -> None:
    with raw.connect() as client:
        client.sendall(GET.replace(b"GET", b"HEAD") * 2)
        received = b""
        while received.count(b"\r\n\r\n") < 2:
            received += client.recv(65536)
    assert received.count(b"HTTP/1.1 200 OK") == 2


def test_expect_100_continue(raw: RawClient) -> None:
    head = f"PUT /bucket/x HTTP/1.1\r\nAuthorization: {AUTHORIZATION}\r\n"
    with raw.connect() as client:
        client.sendall(f"{head}Expect: 100-continue\r\nContent-Length: 2\r\n\r\n".encode())
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"xy")
        assert client.recv(12) == b"HTTP/1.1 200"


@pytest.mark.parametrize("line", [b"\0\0\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000])
def test_nonsense_is_refused_and_the_connection_closed(raw: RawClient, line: bytes) -> None:
    with raw.connect() as client:
        client.sendall(line)
        assert client.recv(12) == b"HTTP/1.1 400"


def test_a_bad_length_is_refused(raw: RawClient) -> None:
    assert raw("PUT", "/bucket/x", None, {"Content-Length": "two"})[0] == 400
    with raw.connect() as client:
        client.sendall(f"PUT /bucket/x HTTP/1.1\r\nAuthorization: {AUTHORIZATION}\r\n\r\n".encode())
        assert client.recv(12) == b"HTTP/1.1 411"


def test_counters(endpoint: LocalEndpoint, raw: RawClient) -> None:
    raw("PUT", "/bucket/counted", b"12345")
    raw("GET", "/bucket/counted", headers={"Range": "bytes=1-2"})
    raw("GET", "/bucket/missing")
    stats = endpoint.stats()
    assert stats.requests == {"PutObject": 1, "GetObject": 2}
    assert stats.requests_total == 3
    assert stats.errors == {"NoSuchKey": 1}
    assert (stats.body_bytes_in, stats.connections_opened, stats.requests_peak) == (5, 3, 1)
    assert stats.cpu_s > 0
    record = endpoint.requests()[1]
    assert (record.operation, record.key, record.range, record.status) == ("GetObject", "counted", "bytes=1-2", 206)
    assert (record.body_bytes_out, record.connection) == (2, endpoint.requests()[0].connection + 1)
    endpoint.reset_stats()
    assert endpoint.stats().requests == {}
    assert endpoint.requests() == []


def took_s(action: object, *args: object, **kwargs: object) -> float:
    assert callable(action)
    start = time.monotonic()
    action(*args, **kwargs)
    return time.monotonic() - start


def test_shaping_makes_transfers_take_their_time(endpoint: LocalEndpoint, raw: RawClient) -> None:
    endpoint.set_shape(Shape(first_byte_latency_s=0.2))
    assert took_s(raw, "HEAD", "/bucket/data") >= 0.2
    endpoint.set_shape(Shape(connection_bytes_per_s=5 << 20))
    assert 0.15 <= took_s(raw, "GET", "/bucket/data") < 5
    assert 0.15 <= took_s(raw, "PUT", "/bucket/slow", DATA) < 5
    endpoint.set_shape(Shape(total_bytes_per_s=5 << 20))
    assert 0.15 <= took_s(raw, "GET", "/bucket/data") < 5
    assert raw("GET", "/bucket/slow")[2] == DATA
