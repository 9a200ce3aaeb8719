"""The bulk operations through aiobotocore: for proxies, S3 Express sessions and SigV4A, which the direct path lacks.

Bodies are copied on their way; slower, never wrong. See ``bulk.Bulk`` for what each operation promises.
"""

from __future__ import annotations

from typing import Any

from aiockpt.config import S3ClientConfig
from aiockpt.errors import ReadError
from aiockpt.model import ObjectId, ObjectInfo, Replaces
from aiockpt.s3.arguments import condition_arguments, request_arguments, storage_arguments
from aiockpt.s3.bulk import PartTransfer, Payload, RangeTransfer, check_range_answer, range_refusals
from aiockpt.s3.failures import answered
from aiockpt.s3.session import Session
from aiockpt.wire.http1 import ResponseHead
from aiockpt.wire.s3 import bare_etag, crc32_header, if_match, part_etag, range_header


class ClientBulk:
    """Bulk operations on an aiobotocore client. See ``bulk.Bulk``."""

    def __init__(self, session: Session, config: S3ClientConfig) -> None:
        self._session = session
        self._config = config

    def _checksum(self, payload: Payload) -> dict[str, str]:
        return {"ChecksumCRC32": crc32_header(payload.crc32)} if self._config.checksum == "crc32" else {}

    async def get(self, source: ObjectId, transfer: RangeTransfer) -> None:  # noqa: D102  # Bulk's
        arguments: dict[str, Any] = {"Range": range_header(transfer.rest), **request_arguments(self._config)}
        if pinned := if_match(transfer.etag):
            arguments["IfMatch"] = pinned
        heard: dict[str, str] = {}
        with range_refusals(source, transfer), answered(heard), self._session.requesting("GET", source):
            client = await self._session.client()
            answer = await client.get_object(Bucket=source.bucket, Key=source.key, **arguments)
            head = _head_of(answer)
            heard.update(head.headers)
            async with answer["Body"] as body:
                check_range_answer(head, source, transfer)
                async for chunk in body.iter_chunks():
                    transfer.landing.copy_in(memoryview(chunk))
            if transfer.landing.remaining:
                raise ReadError(f"the body ended {transfer.landing.remaining} bytes early")

    async def get_whole(self, source: ObjectId) -> tuple[bytes, str]:  # noqa: D102  # Bulk's
        with self._session.requesting("GET", source):
            client = await self._session.client()
            answer = await client.get_object(Bucket=source.bucket, Key=source.key, **request_arguments(self._config))
            async with answer["Body"] as body:
                return await body.read(), bare_etag(answer.get("ETag"))

    async def put(self, target: ObjectId, payload: Payload, replaces: Replaces) -> ObjectInfo:  # noqa: D102
        arguments = {**storage_arguments(self._config), **self._checksum(payload)}
        arguments |= condition_arguments(replaces)
        with self._session.requesting("PUT", target):
            client = await self._session.client()
            answer = await client.put_object(
                Bucket=target.bucket, Key=target.key, Body=b"".join(payload.views), **arguments
            )
        return ObjectInfo(payload.nbytes, bare_etag(answer.get("ETag")))

    async def upload_part(self, target: ObjectId, transfer: PartTransfer) -> None:  # noqa: D102  # Bulk's
        with self._session.requesting("PUT", target):
            client = await self._session.client()
            answer = await client.upload_part(
                Bucket=target.bucket,
                Key=target.key,
                UploadId=transfer.upload_id,
                PartNumber=transfer.number,
                Body=b"".join(transfer.payload.views),
                **self._checksum(transfer.payload),
                **request_arguments(self._config),
            )
        transfer.taken(part_etag(str(answer["ETag"])))


def _head_of(answer: dict[str, Any]) -> ResponseHead:
    meta = answer["ResponseMetadata"]
    headers = {str(name).lower(): str(value) for name, value in meta["HTTPHeaders"].items()}
    return ResponseHead(status=int(meta["HTTPStatusCode"]), reason="", headers=headers, keep_alive=True)
