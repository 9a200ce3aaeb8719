"""The bare loop: what an event loop can move if it does nothing else. The bound that the contenders are held against.

A few connections, each with one request in flight; answers land in memory that is there, parts leave from memory that
is there, each after one pass of CRC32. No retries, no plan, no DCP: URLs are signed beforehand.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import botocore.session
import torch
import uvloop
from botocore.config import Config

from aiockpt.crc import crc32
from aiockpt.model import MiB
from bench import workload
from bench.measure import Trial

REQUEST_BYTES = 16 * MiB

#: 4 to 16 are equally fast over loopback.
CONNECTIONS = 8

_NOTHING = memoryview(bytearray())
_HEAD_END = b"\r\n\r\n"


class BareProtocol(asyncio.BufferedProtocol):
    """A connection: one request at a time, its answer's body lands in the memory given."""

    def __init__(self) -> None:
        self._head = bytearray(64 * 1024)
        self._filled = 0
        self._in_body = False
        self._into = _NOTHING
        self._landed = 0
        self._done: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are not registered as such

    async def exchange(self, head: bytes, body: memoryview, into: memoryview) -> bytes:
        """Send a request, have the answer's body land in ``into``, which it must fill; returns the answer's head."""
        self._into, self._filled, self._landed, self._in_body = into, 0, 0, False
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(head)
        if body:
            self._transport.write(body)
        try:
            await self._done
        finally:
            self._done = None
        return bytes(self._head[: self._filled])

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002, D102
        return self._into[self._landed :] if self._in_body else memoryview(self._head)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:  # noqa: D102
        assert self._done is not None
        if self._in_body:
            self._landed += nbytes
        else:
            self._filled += nbytes
            end = self._head.find(_HEAD_END, 0, self._filled)
            if end < 0:
                return
            end += len(_HEAD_END)
            if not self._head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 206")):
                self._done.set_exception(RuntimeError(bytes(self._head[: self._filled]).decode()))
                return
            self._in_body = True
            self._landed = self._filled - end
            self._into[: self._landed] = self._head[end : self._filled]
            self._filled = end
        if self._landed == len(self._into):
            self._in_body = False
            self._done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        if self._done is not None and not self._done.done():
            self._done.set_exception(exc or ConnectionError("closed by the server"))


@dataclass(frozen=True, slots=True)
class Request:
    """A request, made ready to be sent.

    Attributes:
        head: as it goes over the wire.
        body: sent behind it.
        into: what the answer's body fills.
    """

    head: bytes
    body: memoryview
    into: memoryview


def move(url: str, requests: list[Request], connections: int) -> list[bytes]:
    """Perform requests to one host over some connections; returns the answers' heads in the order of the requests."""
    return uvloop.run(_move(url, requests, connections))


async def _move(url: str, requests: list[Request], connections: int) -> list[bytes]:
    waiting = iter(enumerate(requests))
    heads: dict[int, bytes] = {}
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    tls = ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE")) if secure else None
    assert parts.hostname is not None
    host, port = parts.hostname, parts.port or (443 if secure else 80)

    async def work() -> None:
        transport, protocol = await asyncio.get_running_loop().create_connection(BareProtocol, host, port, ssl=tls)
        for number, request in waiting:
            if request.body:
                crc32(request.body)
            heads[number] = await protocol.exchange(request.head, request.body, request.into)
        transport.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(work())
    return [heads[number] for number in range(len(requests))]


def new_client() -> Any:
    """A botocore client of the environment's endpoint."""
    style = "path" if "AWS_ENDPOINT_URL" in os.environ else "auto"
    config = Config(signature_version="s3v4", s3={"addressing_style": style})
    return botocore.session.get_session().create_client("s3", config=config)


def split_url(url: str) -> tuple[str, str]:
    """Bucket and key of ``s3://bucket/key``."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return bucket, key


def _request_head(method: str, signed_url: str, headers: Mapping[str, object]) -> bytes:
    parts = urlsplit(signed_url)
    lines = [f"{method} {parts.path}?{parts.query} HTTP/1.1", f"Host: {parts.netloc}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@dataclass
class BareLoad(Trial):
    """Receive all data objects of a checkpoint; the argument names its URL."""

    connections: int = CONNECTIONS
    request_bytes: int = REQUEST_BYTES

    def prepare(self) -> None:  # noqa: D102
        self._client = new_client()
        self._memory = memoryview(b"")

    def before(self, url: str) -> None:  # noqa: D102
        bucket, prefix = split_url(url)
        rows = self._client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/")["Contents"]
        sizes = {row["Key"]: row["Size"] for row in rows if not row["Key"].endswith(".metadata")}
        if len(self._memory) != sum(sizes.values()):
            self._memory = memoryview(bytearray(sum(sizes.values())))
        self.payload_bytes = len(self._memory)
        self._requests = []
        used = 0
        for key, nbytes in sizes.items():
            self._signed = self._client.generate_presigned_url("get_object", {"Bucket": bucket, "Key": key})
            for start in range(0, nbytes, self.request_bytes):
                length = min(self.request_bytes, nbytes - start)
                head = _request_head("GET", self._signed, {"Range": f"bytes={start}-{start + length - 1}"})
                self._requests.append(Request(head, _NOTHING, self._memory[used : used + length]))
                used += length

    def run(self, url: str) -> None:  # noqa: ARG002, D102
        move(self._signed, self._requests, self.connections)


@dataclass
class BareSave(Trial):
    """Send a state dict's bytes as the parts of one object, with a CRC32 of each; the argument names its URL."""

    nbytes: int
    connections: int = CONNECTIONS
    request_bytes: int = REQUEST_BYTES

    def prepare(self) -> None:  # noqa: D102
        self._client = new_client()
        # one stretch of memory of the same size: gathering small tensors into parts is the contenders' business
        self.payload_bytes = workload.size(workload.mixed(self.nbytes))
        self._tensor = torch.randint(256, (self.payload_bytes,), dtype=torch.uint8)
        self._memory = workload.memory_of(self._tensor)

    def before(self, url: str) -> None:  # noqa: D102
        bucket, prefix = split_url(url)
        target = {"Bucket": bucket, "Key": f"{prefix}/bare"}
        upload_id = self._client.create_multipart_upload(**target)["UploadId"]
        self._requests = []
        for number, start in enumerate(range(0, len(self._memory), self.request_bytes), 1):
            part = self._memory[start : start + self.request_bytes]
            self._signed = self._client.generate_presigned_url(
                "upload_part", {**target, "UploadId": upload_id, "PartNumber": number}
            )
            head = _request_head("PUT", self._signed, {"Content-Length": len(part)})
            self._requests.append(Request(head, part, _NOTHING))
        self._abort: Callable[[], object] = lambda: self._client.abort_multipart_upload(**target, UploadId=upload_id)

    def run(self, url: str) -> None:  # noqa: ARG002, D102
        move(self._signed, self._requests, self.connections)

    def after(self, url: str) -> None:  # noqa: ARG002, D102
        self._abort()
