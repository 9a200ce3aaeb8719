"""The direct bulk path: ranged GET into memory, PUT and UploadPart from memory, on the project's own connections.

One attempt each, no retries. Nothing is copied: bodies land in and leave from the caller's memory. ``fallback`` has
the same operations through aiobotocore's body stream. Raises ``aiockpt.errors`` only.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Protocol, Self
from urllib.parse import quote

from aiockpt.config import S3ClientConfig
from aiockpt.crc import crc32
from aiockpt.errors import (
    ChecksumMismatch,
    ObjectChanged,
    PreconditionFailed,
    RemoteProtocolError,
    ServiceError,
    ShortRead,
)
from aiockpt.model import ByteRange, ObjectId, ObjectInfo, Replaces
from aiockpt.observe.exchange import Exchange
from aiockpt.s3.address import Address, resolve
from aiockpt.s3.arguments import condition_headers, request_headers, storage_headers
from aiockpt.s3.control import ControlPlane
from aiockpt.s3.failures import REQUEST_ID, Failure, WrongRegion, answered, service_error
from aiockpt.s3.session import Session
from aiockpt.s3.signing import signed_headers
from aiockpt.transport.connection import ChooseLanding, Request, Response
from aiockpt.transport.landing import Landing
from aiockpt.transport.meter import Meter
from aiockpt.transport.spread import Pool
from aiockpt.wire.http1 import ResponseHead, request_head, retry_after_s
from aiockpt.wire.s3 import (
    bare_etag,
    crc32_header,
    if_match,
    parse_content_range,
    parse_crc32_header,
    parse_error,
    part_etag,
    range_header,
)


@dataclass(slots=True)
class Pin:
    """Which state of an object is read: transfers that must not mix two of them share one pin. Thread-safe.

    Attributes:
        etag: of that state: given, or that of the first answer; ``""`` until then.
    """

    etag: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def settle(self, etag: str) -> bool:
        """An answer has this ETag (``""``: none), which the first one settles; whether it is of the same state."""
        with self._lock:
            self.etag = self.etag or etag
            return etag in {"", self.etag}


@dataclass(slots=True)
class RangeTransfer:
    """A range on its way into memory; it survives a broken attempt, and the next one goes on where it stopped.

    Attributes:
        span: the bytes wanted.
        landing: where they go; of the same length, the caller's memory.
        pin: the object that they must come from.
        is_hedge: another transfer lands the same bytes in the same memory. So it takes a fresh connection, and only
            bytes that are proven the same: from an answer with the pinned ETag.
        on_answer: called when the head of an answer has been found right, on the loop thread that receives it.
    """

    span: ByteRange
    landing: Landing
    pin: Pin = field(default_factory=Pin)
    is_hedge: bool = False
    on_answer: Callable[[], None] | None = None

    @property
    def etag(self) -> str:
        """The pinned ETag."""
        return self.pin.etag

    @property
    def rest(self) -> ByteRange:
        """The bytes still to come."""
        return ByteRange(self.span.start + self.landing.landed, self.span.end)

    @property
    def missing_bytes(self) -> int:
        """How many they are."""
        return self.landing.remaining

    @property
    def moved_bytes(self) -> int:
        """Bytes moved so far, by all attempts."""
        return self.landing.landed

    def hedge(self) -> Self:
        """A second transfer of the bytes that are missing now; see ``is_hedge``."""
        return replace(self, landing=self.landing.fork(), is_hedge=True, on_answer=None)

    def learn(self, hedge: Self) -> None:
        """Go on from where a hedge came to, if that is further; both have ended."""
        if hedge.landing.landed > self.landing.landed:
            self.landing = hedge.landing


@dataclass(frozen=True, slots=True)
class Payload:
    """What a PUT or UploadPart sends: views in order (the caller's memory), their length together, their CRC32."""

    views: Sequence[memoryview]
    nbytes: int
    crc32: int


@dataclass(slots=True)
class PartTransfer:
    """A part on its way to the service, in one attempt: another one begins from the first byte.

    Attributes:
        upload_id: of the multipart upload.
        number: of the part, from 1.
        payload: its bytes, the caller's memory.
        is_hedge: another transfer sends the same part. So it takes a fresh connection.
        on_answer: called when the service has taken the part.
        meter: tells how far its bytes have come.
        etag: the part's, once the service has taken it.
    """

    upload_id: str
    number: int
    payload: Payload
    is_hedge: bool = False
    on_answer: Callable[[], None] | None = None
    meter: Meter = field(default_factory=Meter)
    etag: str = ""

    @property
    def missing_bytes(self) -> int:
        """Bytes to be moved: always all of them."""
        return self.payload.nbytes

    @property
    def moved_bytes(self) -> int:
        """Those that have come to the service, as far as that is known; through a proxy nothing is."""
        return self.meter.nbytes

    def hedge(self) -> Self:
        """A second transfer of the same part; see ``is_hedge``."""
        return replace(self, is_hedge=True, on_answer=None, meter=Meter())

    def taken(self, etag: str) -> None:
        """Note that the service has it, and how it calls it."""
        self.etag = etag
        if self.on_answer is not None:
            self.on_answer()

    def learn(self, hedge: Self) -> None:
        """Take over what a hedge has brought about; both have ended."""
        self.etag = hedge.etag or self.etag


@dataclass(frozen=True, slots=True)
class _Ask:
    """A request before it is addressed and signed: its operation by S3's name, what it asks for, what it sends."""

    operation: str
    method: str
    target: ObjectId
    headers: dict[str, str]
    query: str = ""
    payload: Payload | None = None
    span: ByteRange | None = None
    part: int = 0
    hedge: bool = False
    meter: Meter = field(default_factory=Meter)


class Bulk(Protocol):
    """The bulk operations on objects."""

    async def get(self, source: ObjectId, transfer: RangeTransfer) -> None:
        """Land the rest of a range; on failure the transfer keeps what arrived."""

    async def get_whole(self, source: ObjectId) -> tuple[bytes, str]:
        """An object in one request, and its ETag; a try that breaks begins again, so it is for what is not huge."""

    async def put(self, target: ObjectId, payload: Payload, replaces: Replaces) -> ObjectInfo:
        """Write an object in one request."""

    async def upload_part(self, target: ObjectId, transfer: PartTransfer) -> None:
        """Write one part of a multipart upload; the transfer is told its ETag."""


class DirectBulk:
    """Bulk operations on the project's own connections. See ``Bulk``."""

    def __init__(self, session: Session, control: ControlPlane, pool: Pool, config: S3ClientConfig) -> None:
        self._session = session
        self._control = control
        self._pool = pool
        self._addresses: dict[str, Address] = {}
        self._resolving = asyncio.Lock()
        self._read_headers = request_headers(config)
        self._write_headers = storage_headers(config)
        self._checksums = config.checksum == "crc32"

    async def address(self, bucket: str, region: str = "") -> Address:
        """Where ``bucket`` lives; asked once, and again if it says that it lives in another ``region``."""
        async with self._resolving:
            known = self._addresses.get(bucket)
            if known is None or (region and region != known.region):
                client = await self._session.client(region or None)
                known = self._addresses[bucket] = await resolve(client, bucket)
        return known

    async def get(self, source: ObjectId, transfer: RangeTransfer) -> None:  # noqa: D102  # Bulk's
        headers = {**self._read_headers, "Range": range_header(transfer.rest)}
        if pinned := if_match(transfer.etag):
            headers["If-Match"] = pinned

        def choose(head: ResponseHead) -> Landing | None:
            if head.status not in {200, 206}:
                return None
            check_range_answer(head, source, transfer)
            return transfer.landing

        with range_refusals(source, transfer):
            ask = _Ask("GetObject", "GET", source, headers, span=transfer.rest, hedge=transfer.is_hedge)
            response = await self._request(ask, choose)
        if transfer.landing.remaining:
            raise _nonsense(response, "GET", source, f"HTTP {response.head.status} is no answer to a range request")

    async def get_whole(self, source: ObjectId) -> tuple[bytes, str]:  # noqa: D102  # Bulk's
        memory = bytearray()

        def choose(head: ResponseHead) -> Landing | None:
            nonlocal memory
            if head.status != HTTPStatus.OK or "content-length" not in head.headers:
                return None
            memory = bytearray(int(head.headers["content-length"]))
            return Landing([memoryview(memory)])

        asked = {"x-amz-checksum-mode": "ENABLED"} if self._checksums else {}
        response = await self._request(_Ask("GetObject", "GET", source, self._read_headers | asked), choose)
        data = bytes(memory) or response.body
        check_whole(response.head, source, data)
        return data, bare_etag(response.head.headers.get("etag"))

    async def put(self, target: ObjectId, payload: Payload, replaces: Replaces) -> ObjectInfo:  # noqa: D102  # Bulk's
        headers = {**self._write_headers, **self._payload_headers(payload)}
        headers |= condition_headers(replaces)
        response = await self._request(_Ask("PutObject", "PUT", target, headers, payload=payload), _buffered)
        return ObjectInfo(payload.nbytes, bare_etag(response.head.headers.get("etag")))

    async def upload_part(self, target: ObjectId, transfer: PartTransfer) -> None:  # noqa: D102  # Bulk's
        number, payload = transfer.number, transfer.payload
        query = f"partNumber={number}&uploadId={quote(transfer.upload_id, safe='~')}"
        headers = {**self._read_headers, **self._payload_headers(payload)}
        ask = _Ask(
            "UploadPart", "PUT", target, headers, query, payload,
            part=number, hedge=transfer.is_hedge, meter=transfer.meter,
        )  # fmt: skip
        response = await self._request(ask, _buffered)
        etag = response.head.headers.get("etag")
        if not etag:
            raise _nonsense(response, f"PUT part {number} of", target, "the answer has no ETag")
        transfer.taken(part_etag(etag))

    def _payload_headers(self, payload: Payload) -> dict[str, str]:
        headers = {"Content-Length": str(payload.nbytes)}
        if self._checksums:
            headers["x-amz-checksum-crc32"] = crc32_header(payload.crc32)
        return headers

    async def _request(self, ask: _Ask, choose: ChooseLanding) -> Response:
        """One exchange; follows a redirect to another region once."""
        address = await self.address(ask.target.bucket)
        try:
            return await self._exchange(address, ask, choose)
        except WrongRegion as error:
            region = error.region or await self._control.bucket_region(ask.target.bucket)
            if not region or region == address.region:
                raise
            address = await self.address(ask.target.bucket, region)
            return await self._exchange(address, ask, choose)

    async def _exchange(self, address: Address, ask: _Ask, choose: ChooseLanding) -> Response:
        method, payload = ask.method, ask.payload
        path = address.target(ask.target.key, ask.query)
        views = payload.views if payload is not None else ()
        heard: dict[str, str] = {}

        def hear(head: ResponseHead) -> Landing | None:
            heard.update(head.headers)
            return choose(head)

        with answered(heard), self._session.requesting(method, ask.target):
            signed = signed_headers(await self._session.credentials(), address, method, path, ask.headers)
            head = request_head(method, path, signed)
            with Exchange(ask.operation, ask.target, ask.span, ask.part, ask.hedge) as exchange:
                request = Request(method, head, views, ask.meter, exchange, fresh=ask.hedge)
                try:
                    response = await self._pool.request(address.endpoint, request, hear)
                finally:
                    exchange.sent_bytes = ask.meter.nbytes
                exchange.status = response.head.status
            if response.head.status >= 300:
                raise service_error(_failure(response), method, ask.target)
        return response


def _buffered(_: ResponseHead) -> None:
    return None


def _failure(response: Response) -> Failure:
    headers = response.head.headers
    document = parse_error(response.body)
    return Failure(
        status=response.head.status,
        code=document.code,
        message=document.message or response.head.reason,
        request_id=document.request_id or headers.get(REQUEST_ID, ""),
        region=headers.get("x-amz-bucket-region", "") or document.region,
        retry_after_s=retry_after_s(headers, datetime.now(UTC)),
    )


def _nonsense(response: Response, action: str, target: ObjectId, what: str) -> RemoteProtocolError:
    """The error for an answer that is no failure and yet not what was asked for."""
    return RemoteProtocolError(
        f"{action} {target.uri}: {what}",
        bucket=target.bucket,
        key=target.key,
        request_id=response.head.headers.get(REQUEST_ID, ""),
    )


@contextmanager
def range_refusals(source: ObjectId, transfer: RangeTransfer) -> Iterator[None]:
    """Name what a refused range request means: If-Match did not hold (412), or the object ends before the range (416).

    Raises:
        ObjectChanged, ShortRead: likewise.
    """
    try:
        yield
    except PreconditionFailed as exc:
        message = f"{source.uri} was replaced while it was read: it had ETag {transfer.etag}"
        raise ObjectChanged(message, bucket=source.bucket, key=source.key, request_id=exc.request_id) from exc
    except ServiceError as exc:
        if exc.status != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        message = f"{source.uri} ends before byte {transfer.rest.start}, which was asked for: truncated?"
        raise ShortRead(message, bucket=source.bucket, key=source.key, request_id=exc.request_id) from exc


def check_whole(head: ResponseHead, source: ObjectId, data: bytes) -> None:
    """Compare a whole object with the CRC32 that the service has of it, if the answer tells.

    Raises:
        ChecksumMismatch: these are other bytes, or fewer.
    """
    stored = head.headers.get("x-amz-checksum-crc32")
    if stored and parse_crc32_header(stored) not in {None, came := crc32(data)}:
        error = ChecksumMismatch(f"GET {source.uri}: the {len(data)} bytes that came do not match the object's CRC32")
        error.came = came
        raise error


def check_range_answer(head: ResponseHead, source: ObjectId, transfer: RangeTransfer) -> None:
    """Check that an answer holds exactly the rest of this range of this object; notes its ETag.

    Some servers answer a ranged GET with status 200 and just the range: without Content-Range the length tells, as
    the whole object would be longer than its part.

    Raises:
        ObjectChanged: another object lies there by now (some servers ignore If-Match).
        ShortRead: the object ends before the range does.
        RemoteProtocolError: other bytes than were asked for.
    """
    span = transfer.rest
    etag = bare_etag(head.headers.get("etag"))
    if transfer.etag and etag and etag != transfer.etag:
        raise _changed(source, transfer, etag)
    if transfer.is_hedge and not etag:
        raise RemoteProtocolError(f"GET {source.uri}: an answer without ETag cannot be proven to hold the same bytes")
    length = head.headers.get("content-length")
    if content_range := head.headers.get("content-range"):
        answered, _ = parse_content_range(content_range)
    elif length is not None and (head.status == 200 and (span.start == 0 or int(length) == len(span))):
        answered = ByteRange(span.start, span.start + int(length))
    else:
        raise RemoteProtocolError(f"GET {source.uri}: the server does not serve ranges")
    if answered.start == span.start and answered.end < span.end:
        raise ShortRead(
            f"{source.uri} ends at byte {answered.end}, but bytes {span.start}-{span.end} were expected: truncated?"
        )
    if answered != span:
        raise RemoteProtocolError(
            f"GET {source.uri}: bytes {answered.start}-{answered.end} came, {span.start}-{span.end} were asked for"
        )
    if not transfer.pin.settle(etag):  # another answer did, on another loop thread, since the check above
        raise _changed(source, transfer, etag)
    if transfer.on_answer is not None:
        transfer.on_answer()


def _changed(source: ObjectId, transfer: RangeTransfer, etag: str) -> ObjectChanged:
    return ObjectChanged(f"{source.uri} was replaced while it was read: ETag {etag} instead of {transfer.etag}")
