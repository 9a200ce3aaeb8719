from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest

from aiockpt.model import MiB
from aiockpt.transport.send_queue import SendQueue


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
