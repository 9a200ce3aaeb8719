"""HTTP/1.1 from the client's side, without I/O: request heads, response heads, framing, chunked bodies.

One job: the octets of RFC 9112. It knows neither sockets nor S3, and holds no state but that of one chunked
body. llhttp (through httptools) tokenizes response heads; what a head means for the body is decided here.
Whatever a server may send ends in a result or in ``RemoteProtocolError``; a request that would be malformed,
in ``LocalProtocolError``. Messages never hold what was sent or received: heads carry signatures.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httptools

from aiockpt.errors import LocalProtocolError, RemoteProtocolError
from aiockpt.model import KiB

#: Longest response head: S3 limits user metadata to 2 KiB and sends some 20 headers more; 32 KiB leaves room
#: for proxies.
MAX_HEAD_BYTES = 32 * KiB

#: Longest chunk-size or trailer line, and all trailers together. Real ones are below 200 bytes, checksum
#: trailers included; the bounds keep a hostile server from growing our memory.
MAX_LINE_BYTES = 4 * KiB
MAX_TRAILER_BYTES = 16 * KiB

_HEAD_END = b"\r\n\r\n"
_METHOD = re.compile(r"[A-Z]+")
_TARGET = re.compile(r"[\x21-\x7e]+")
_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FIELD_VALUE = re.compile(r"[^\r\n\x00]*")
#: 15 digits hold 2**60 - 1: more than any body, and no number that needs a big-integer conversion.
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n\x00]*)?")
#: 18 decimal digits, likewise.
_LENGTH = re.compile(r"[0-9]{1,18}")
#: A Retry-After in seconds; 9 digits are thirty years.
_SECONDS = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """Status line and headers of a response.

    Attributes:
        headers: names in lower case, values as Latin-1 text; the values of a repeated header are joined
            by a comma and a blank.
        keep_alive: whether version and Connection header let the connection be used again. A body that lasts
            until the connection closes (``Framing.UNTIL_CLOSE``) rules that out whatever stands here.
    """

    status: int
    reason: str
    headers: Mapping[str, str]
    keep_alive: bool


class Framing(enum.Enum):
    """How the end of a response body is found."""

    EMPTY = enum.auto()  # there is no body
    LENGTH = enum.auto()  # after so many bytes
    CHUNKED = enum.auto()  # after the last chunk and the trailers
    UNTIL_CLOSE = enum.auto()  # when the server closes the connection


def head_end(buffer: bytes | bytearray | memoryview, length: int, start: int = 0) -> int:
    """Find the end of a response head.

    Args:
        buffer: holds what has arrived, in its first ``length`` bytes.
        length: how many bytes of ``buffer`` are meaningful.
        start: where to look from. The blank line may have been cut between two reads, so a caller that
            resumes goes back three bytes from the former ``length``.

    Returns:
        The index just past the blank line, or -1 if it has not arrived.
    """
    if isinstance(buffer, memoryview):
        found = bytes(buffer[start:length]).find(_HEAD_END)
        return -1 if found < 0 else start + found + len(_HEAD_END)
    found = buffer.find(_HEAD_END, start, length)
    return -1 if found < 0 else found + len(_HEAD_END)


class _HeadEvents:
    """What llhttp's callbacks collect; the method names are httptools'."""

    def __init__(self) -> None:
        self.reason = ""
        self.headers: dict[str, str] = {}
        self.complete = False

    def on_status(self, reason: bytes) -> None:
        self.reason += reason.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1").strip(" \t")
        self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text

    def on_headers_complete(self) -> None:
        self.complete = True


def parse_head(head: bytes) -> ResponseHead:
    """Parse exactly one response head, its blank line included.

    Raises:
        RemoteProtocolError: this is not one whole HTTP/1.0 or 1.1 response head of at most
    ``MAX_HEAD_BYTES``.
    """
    if len(head) > MAX_HEAD_BYTES:
        raise RemoteProtocolError(f"response head is longer than {MAX_HEAD_BYTES} bytes")
    if not head.startswith(b"HTTP/1.") or head_end(head, len(head)) != len(head):
        raise RemoteProtocolError("not one whole HTTP/1.x response head")
    events = _HeadEvents()
    parser = httptools.HttpResponseParser(events)
    try:
        parser.feed_data(head)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
        raise RemoteProtocolError("malformed response head") from exc
    if not events.complete:
        raise RemoteProtocolError("response head ends early")
    return ResponseHead(
        status=parser.get_status_code(),
        reason=events.reason,
        headers=events.headers,
        keep_alive=_keeps_alive(parser.get_http_version(), events.headers),
    )


def _keeps_alive(version: str, headers: Mapping[str, str]) -> bool:
    options = _tokens(headers.get("connection", ""))
    return "close" not in options and (version == "1.1" or "keep-alive" in options)


def _tokens(value: str) -> set[str]:
    return {token.strip(" \t").lower() for token in value.split(",")}


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float:
    """Seconds that an answer asks to be left alone for (RFC 9110 §10.2.3); 0 if it does not, or makes no sense.

    Args:
        headers: names in lower case.
        now: for a Retry-After that is a date, where the answer has no Date of its own to count from. Its own is
            better: the clocks of two machines differ by more than a busy service asks for.
    """
    value = headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(value):
        return float(value)
    until = _http_date(value)
    if until is None:
        return 0.0
    return max(0.0, (until - (_http_date(headers.get("date", "")) or now)).total_seconds())


def _http_date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, IndexError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def framing(head: ResponseHead, method: str) -> tuple[Framing, int]:
    """Decide how the body of the response ``head`` to a ``method`` request ends (RFC 9112 §6.3).

    A transfer coding other than ``chunked`` is an error: no request of ours offers another in ``TE``. So is a
    length beside a transfer coding, by which somebody between may have been deceived about where the response
    ends.

    Returns:
        The framing, and the body's length in bytes where that is ``LENGTH`` (0 otherwise).

    Raises:
        RemoteProtocolError: the headers contradict one another, or make no sense.
    """
    if method == "HEAD" or 100 <= head.status < 200 or head.status in {204, 304}:
        return Framing.EMPTY, 0
    coding = head.headers.get("transfer-encoding")
    length = head.headers.get("content-length")
    if coding is not None:
        if coding.lower() != "chunked" or length is not None:
            raise RemoteProtocolError("response has a Transfer-Encoding that we did not ask for")
        return Framing.CHUNKED, 0
    if length is None:
        return Framing.UNTIL_CLOSE, 0
    values = _tokens(length)
    value = values.pop()
    if values or not _LENGTH.fullmatch(value):
        raise RemoteProtocolError("response has conflicting or malformed Content-Length headers")
    return Framing.LENGTH, int(value)


class _Chunk(enum.Enum):
    """What a chunked body's decoder awaits."""

    SIZE = enum.auto()  # a chunk-size line
    DATA = enum.auto()  # the chunk's bytes
    DATA_END = enum.auto()  # the line end behind them
    TRAILER = enum.auto()  # a trailer line, or the empty line that ends the body
    DONE = enum.auto()


class ChunkedBody:
    """Decoder of one chunked body (RFC 9112 §7.1). Chunk extensions and trailers are read over.

    Attributes:
        unused: bytes that came after the body's end.
    """

    def __init__(self) -> None:
        self._state = _Chunk.SIZE
        self._pending = b""  # an incomplete line; empty while a chunk's bytes are awaited
        self._chunk_left = 0
        self._trailers_left = MAX_TRAILER_BYTES
        self.unused = b""

    @property
    def done(self) -> bool:
        """Whether the body has been read to its end."""
        return self._state is _Chunk.DONE

    def feed(self, data: bytes | memoryview) -> bytes:
        """Decode what has arrived, cut anywhere; returns the payload in it. Does not keep ``data``.

        Raises:
            RemoteProtocolError: the bytes are no chunked body, or exceed a limit. The decoder is of no use
        afterwards.
        """
        if self.done:
            self.unused += data
            return b""
        buffer = memoryview(self._pending + data)
        payload = []
        position = 0
        while position < len(buffer) and not self.done:
            if self._state is _Chunk.DATA:
                chunk = buffer[position : position + self._chunk_left]
                payload.append(chunk)
                position += len(chunk)
                self._take_data(len(chunk))
            elif (line := self._line(buffer[position:])) is not None:
                position += len(line) + len(b"\r\n")
                self._take_line(line)
            else:
                break
        rest = bytes(buffer[position:])
        self._pending, self.unused = (b"", rest) if self.done else (rest, b"")
        return b"".join(payload)

    def _line(self, buffer: memoryview) -> bytes | None:
        """The line that ``buffer`` starts with, without its end; None if it has not wholly arrived."""
        limit = 0 if self._state is _Chunk.DATA_END else MAX_LINE_BYTES
        window = bytes(buffer[: limit + len(b"\r\n")])
        line, end, _ = window.partition(b"\r\n")
        if end:
            return line
        if len(window) == limit + len(b"\r\n"):
            raise RemoteProtocolError("a line of a chunked body is missing its end")
        return None

    def _take_data(self, nbytes: int) -> None:
        self._chunk_left -= nbytes
        if not self._chunk_left:
            self._state = _Chunk.DATA_END

    def _take_line(self, line: bytes) -> None:
        if self._state is _Chunk.DATA_END:
            self._state = _Chunk.SIZE
        elif self._state is _Chunk.SIZE:
            self._chunk_left = _chunk_size(line)
            self._state = _Chunk.DATA if self._chunk_left else _Chunk.TRAILER
        elif not line:
            self._state = _Chunk.DONE
        else:
            self._trailers_left -= len(line)
            if self._trailers_left < 0:
                raise RemoteProtocolError(f"trailers are longer than {MAX_TRAILER_BYTES} bytes")


def _chunk_size(line: bytes) -> int:
    match = _CHUNK_SIZE.fullmatch(line)
    if match is None:
        raise RemoteProtocolError("malformed chunk size")
    return int(match[1], 16)


def request_head(method: str, target: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """Serialize a request line and headers, in the given order, with the blank line.

    Args:
        method: upper-case letters.
        target: path and query, already percent-encoded.
        headers: names and values; values are sent as Latin-1.

    Raises:
        LocalProtocolError: a part holds a line end, NUL or something else that it may not hold.
    """
    _check(_METHOD, method, "method")
    _check(_TARGET, target, "target")
    lines = [f"{method} {target} HTTP/1.1\r\n"]
    for name, value in headers:
        _check(_FIELD_NAME, name, "header name")
        _check(_FIELD_VALUE, value, f"value of header {name}")
        lines.append(f"{name}: {value}\r\n")
    lines.append("\r\n")
    try:
        return "".join(lines).encode("latin-1")
    except UnicodeEncodeError:
        # Not chained: the cause's message would show the head, and with it the signature.
        raise LocalProtocolError("a header value has characters outside Latin-1") from None


def _check(pattern: re.Pattern[str], text: str, what: str) -> None:
    if not pattern.fullmatch(text):
        raise LocalProtocolError(f"the request's {what} is empty or holds forbidden characters")
