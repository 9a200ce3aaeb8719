from __future__ import annotations

import math
import select
import socket
import sys
from collections.abc import Iterator

import pytest

from aiockpt.model import MiB
from aiockpt.transport import send_queue
from aiockpt.transport.send_queue import SHORT_QUEUE_BYTES, SHORT_ROUND_TRIP_S, SendQueue, round_trip_s


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a TCP connection; only those have queues worth the name."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def sent_until_full(sock: socket.socket) -> int:
    sent = 0
    while select.select((), [sock], (), 0.05)[1]:
        sent += sock.send(bytes(MiB))
    return sent


def received(sock: socket.socket) -> int:
    """Everything up to the end, or to a pause."""
    came = 0
    while select.select([sock], (), (), 0.2)[0] and (data := sock.recv(MiB)):
        came += len(data)
    return came


def test_it_holds_what_the_peer_has_no_room_for(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    queue = SendQueue(ours.dup())
    assert queue.unacknowledged_bytes == 0
    sent = sent_until_full(ours)
    assert 0 < queue.unacknowledged_bytes < sent
    assert received(theirs) == sent
    assert queue.unacknowledged_bytes == 0
    queue.close()


def test_closed_it_says_what_was_left(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    queue = SendQueue(ours.dup())
    sent_until_full(ours)
    left = queue.unacknowledged_bytes
    queue.close()
    queue.close()
    assert queue.unacknowledged_bytes == left > 0


@pytest.mark.parametrize("discarded", [False, True])
def test_what_is_left_is_sent_unless_it_is_discarded(
    pair: tuple[socket.socket, socket.socket], discarded: bool
) -> None:
    ours, theirs = pair
    queue = SendQueue(ours.dup())
    sent = sent_until_full(ours)
    if discarded:
        queue.discard()
    queue.close()
    ours.close()
    if discarded:
        with pytest.raises(ConnectionResetError):
            received(theirs)
    else:
        assert received(theirs) == sent


def test_of_nothing_nothing_is_known() -> None:
    queue = SendQueue(None)
    queue.discard()
    assert queue.unacknowledged_bytes == 0
    queue.close()
    assert queue.unacknowledged_bytes == 0


def test_a_descriptor_that_has_no_queue_has_an_empty_one() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        queue = SendQueue(listening.dup())
        assert queue.unacknowledged_bytes == 0
        queue.close()


def most_held(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


@pytest.mark.skipif(sys.platform != "linux", reason="others do not tell how far the peer is")
def test_the_round_trip_is_the_kernels(pair: tuple[socket.socket, socket.socket]) -> None:
    assert 0 < round_trip_s(pair[0]) < 1
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert round_trip_s(ours) == math.inf
    with socket.socket() as alone:
        assert round_trip_s(alone) == math.inf


@pytest.mark.skipif(sys.platform != "linux", reason="others do not tell how far the peer is")
@pytest.mark.parametrize("far", [0.1, 1.01, 100, math.inf])
def test_it_is_short_where_the_peer_is_near(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch, far: float
) -> None:
    before = most_held(pair[0])
    monkeypatch.setattr(send_queue, "round_trip_s", lambda _: far * SHORT_ROUND_TRIP_S)
    queue = SendQueue(pair[0].dup())
    with socket.socket() as alone:
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SHORT_QUEUE_BYTES // 2)
        granted = most_held(alone)
    assert most_held(pair[0]) == (granted if far < 1 else before)
    assert granted <= SHORT_QUEUE_BYTES
    queue.close()
