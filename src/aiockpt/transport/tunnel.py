"""TLS between a socket's transport and a connection, in memory that does not grow with the number of connections.

One job: encrypt and decrypt. What the kernel has goes into one buffer that all connections of a loop share, since it is
emptied before the loop turns to the next one; from there in small pieces through OpenSSL into the memory that the
connection's protocol hands out. uvloop's own TLS keeps a buffer of 256 KiB on each connection and has OpenSSL hold as
much again: 1 MiB a connection was measured, where this keeps some 0.1.

To the loop it is a protocol; to the connection above it is the transport.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from contextlib import suppress
from typing import Any, cast

from aiockpt.model import KiB
from aiockpt.transport.connection import Connection

#: What is taken from the kernel at a time, for all connections of a loop: 256 KiB cost as much CPU time a byte.
RECEIVE_BYTES = 128 * KiB

#: What OpenSSL is given of it at a time, four records. It keeps memory for that, and a third more, for each connection.
FEED_BYTES = 64 * KiB

_of_this_thread = threading.local()


def _shared_buffer() -> memoryview:
    """This thread's: its loop is busy with one connection at a time."""
    buffer: memoryview | None = getattr(_of_this_thread, "buffer", None)
    if buffer is None:
        buffer = _of_this_thread.buffer = memoryview(bytearray(RECEIVE_BYTES))
    return buffer


class Tunnel(asyncio.BufferedProtocol, asyncio.Transport):
    """See the module.

    Args:
        inner: the connection above; told of its transport once TLS is agreed on.
        context: whom to trust.
        host: whose certificate it must be.

    Attributes:
        agreed: done when TLS is agreed on, or with why it is not.
    """

    def __init__(self, inner: Connection, context: ssl.SSLContext, host: str) -> None:
        super().__init__()
        self._inner = inner
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._lower: asyncio.Transport | None = None
        self._is_agreed = False
        self._ended = False
        self._error: Exception | None = None
        self.agreed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # ---- to the loop: a protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._lower = cast("asyncio.Transport", transport)
        if self._ended:  # given up meanwhile
            self._lower.abort()
        else:
            self._agree()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # the loop's signature
        """Called by the loop: where the next bytes go, which ``buffer_updated`` follows at once."""
        return _shared_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Called by the loop: ``nbytes`` have come."""
        received = _shared_buffer()[:nbytes]
        for start in range(0, nbytes, FEED_BYTES):
            self._incoming.write(received[start : start + FEED_BYTES])
            try:
                self._decrypt() if self._is_agreed else self._agree()
            except ssl.SSLError as error:
                self._fail(error)
            if self._ended:
                return
        self._send()  # what TLS itself had to answer

    def eof_received(self) -> bool:
        """Called by the loop. An end without TLS's own may be anybody's: the connection hears of a loss only."""
        return False

    def pause_writing(self) -> None:
        """Called by the loop: it holds enough."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Called by the loop: it takes more."""
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop: the connection is gone."""
        self._ended = True
        if self._is_agreed:
            self._inner.connection_lost(exc or self._error)
        elif not self.agreed.done():
            self.agreed.set_exception(exc or ConnectionResetError("closed by the server while TLS was agreed on"))

    # ---- to the connection: a transport

    def write(self, data: Any) -> None:
        """Encrypt ``data`` and send it; what the kernel does not take at once is kept, encrypted."""
        rest = memoryview(data)
        try:
            while rest and not self._ended:
                rest = rest[self._tls.write(rest) :]
        except ssl.SSLError as error:
            self._fail(error)
        self._send()

    def get_write_buffer_size(self) -> int:
        """Encrypted bytes that the kernel has not taken."""
        return self._lower.get_write_buffer_size() if self._lower is not None and not self._ended else 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """How much may be kept before the connection is asked to pause."""
        assert self._lower is not None
        self._lower.set_write_buffer_limits(high, low)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """The TLS object, and what the transport below knows."""
        if name == "ssl_object":
            return self._tls
        return self._lower.get_extra_info(name, default) if self._lower is not None else default

    def abort(self) -> None:
        """Close at once."""
        self._ended = True
        self.agreed.cancel()
        if self._lower is not None:
            self._lower.abort()

    # ---- within

    def _agree(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send()
            return
        except ssl.SSLError as error:
            self._send()  # tells the server why
            self._fail(error)
            return
        self._send()
        self._is_agreed = True
        self._inner.connection_made(self)
        if not self.agreed.done():
            self.agreed.set_result(None)
        self._decrypt()

    def _decrypt(self) -> None:
        """Hand over what there is."""
        while self._has_more and not self._ended:
            into = self._inner.get_buffer(-1)
            filled, at_end = self._fill(into)
            if filled:
                self._inner.buffer_updated(filled)
            if at_end:
                self._finish()
            elif filled < len(into):
                return

    def _fill(self, into: memoryview) -> tuple[int, bool]:
        """Decrypt into memory, a record at a time; returns how many bytes came, and whether TLS has ended."""
        filled, nbytes = 0, len(into)
        incoming, tls = self._incoming, self._tls
        with suppress(ssl.SSLWantReadError):  # part of a record
            while filled < nbytes and (incoming.pending or tls.pending()):  # _has_more, without a call a record
                came = tls.read(nbytes - filled, into[filled:])
                if not came:
                    return filled, True
                filled += came  # type: ignore[operator]  # the number of bytes, with a buffer
        return filled, False

    @property
    def _has_more(self) -> bool:
        return bool(self._incoming.pending or self._tls.pending())

    def _finish(self) -> None:
        """The server has ended TLS in order."""
        self._inner.eof_received()
        self.abort()

    def _fail(self, error: ssl.SSLError) -> None:
        self._error = error
        if not self.agreed.done():
            self.agreed.set_exception(error)
        self.abort()

    def _send(self) -> None:
        if self._outgoing.pending and self._lower is not None and not self._ended:
            self._lower.write(self._outgoing.read())
