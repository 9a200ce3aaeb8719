"""The control plane: everything about objects but their bulk bytes, through aiobotocore. One attempt each, no retries.

Every method raises ``aiockpt.errors`` only (see ``failures``), naming the object.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from botocore.exceptions import ClientError

from aiockpt.config import S3ClientConfig
from aiockpt.errors import NotFound
from aiockpt.model import ANYTHING, ByteRange, ObjectId, ObjectInfo, Replaces
from aiockpt.s3.arguments import (
    account_arguments,
    condition_arguments,
    copy_arguments,
    copy_source_arguments,
    request_arguments,
    source_condition,
    storage_arguments,
)
from aiockpt.s3.session import Session
from aiockpt.wire.s3 import bare_etag, crc32_header, parse_crc32_header, range_header


@dataclass(frozen=True, slots=True)
class ListedObject:
    """One row of a listing: key, size in bytes, ETag as the server spells it, last change."""

    key: str
    size: int
    etag: str
    last_modified: datetime | None


@dataclass(frozen=True, slots=True)
class PendingUpload:
    """A multipart upload that was neither completed nor aborted."""

    key: str
    upload_id: str
    initiated: datetime | None


@dataclass(frozen=True, slots=True)
class UploadedPart:
    """A part that the service has taken."""

    number: int
    etag: str


@dataclass(frozen=True, slots=True)
class ListedPart:
    """A part of a pending upload: number, size in bytes, when it came, ETag as the server spells it."""

    number: int
    size: int
    last_modified: datetime | None
    etag: str = ""


class ControlPlane:
    """HEAD, LIST, COPY, DELETE and the frame of multipart uploads."""

    def __init__(self, session: Session, config: S3ClientConfig) -> None:
        self._session = session
        self._config = config

    async def head(self, target: ObjectId) -> ObjectInfo:
        """Size and ETag.

        Raises:
            NotFound: there is no such object.
        """
        with self._session.requesting("HEAD", target):
            client = await self._session.client()
            async with self._explained(client, target):
                answer = await client.head_object(**_names(target), **request_arguments(self._config))
        return ObjectInfo(int(answer["ContentLength"]), bare_etag(answer.get("ETag")))

    @asynccontextmanager
    async def _explained(self, client: Any, target: ObjectId) -> AsyncIterator[None]:
        """Around a HEAD: answers to it have no body, and so do not say why they refuse. A GET is asked the same.

        It matters: a 400 may be a wrong request, or credentials that have expired; a 403, a clock that is wrong.
        """
        try:
            yield
        except ClientError as refusal:
            if _status(refusal) in {400, 403}:
                try:
                    await self._ask(client, target)
                except ClientError as explained:
                    if _status(explained) == _status(refusal):
                        raise explained from None
            raise

    async def _ask(self, client: Any, target: ObjectId) -> None:
        """The smallest GET that needs what a HEAD of an object or bucket needs."""
        if target.key:
            answer = await client.get_object(**_names(target), Range="bytes=0-0", **request_arguments(self._config))
            answer["Body"].close()
        else:
            await client.list_objects_v2(Bucket=target.bucket, MaxKeys=1, **account_arguments(self._config))

    async def head_with_crc32(self, target: ObjectId) -> tuple[ObjectInfo, int | None]:
        """Size and ETag, and the CRC32 that the service has of the whole object; None if it has none.

        Raises:
            NotFound: there is no such object.
        """
        with self._session.requesting("HEAD", target):
            client = await self._session.client()
            async with self._explained(client, target):
                answer = await client.head_object(
                    **_names(target), ChecksumMode="ENABLED", **request_arguments(self._config)
                )
        info = ObjectInfo(int(answer["ContentLength"]), bare_etag(answer.get("ETag")))
        return info, parse_crc32_header(answer["ChecksumCRC32"]) if "ChecksumCRC32" in answer else None

    async def bucket_region(self, bucket: str) -> str:
        """The region that a bucket says it is in; ``""`` if it does not say."""
        target = ObjectId(bucket, "")
        with self._session.requesting("HEAD", target):
            client = await self._session.client()
            async with self._explained(client, target):
                answer = await client.head_bucket(Bucket=bucket)
        return str(answer["ResponseMetadata"].get("HTTPHeaders", {}).get("x-amz-bucket-region", ""))

    async def service_time(self, bucket: str) -> datetime | None:
        """What time it is for the service, to the second; None if it does not say."""
        with self._session.requesting("HEAD", ObjectId(bucket, "")):
            client = await self._session.client()
            async with self._explained(client, ObjectId(bucket, "")):
                answer = await client.head_bucket(Bucket=bucket)
            date = answer["ResponseMetadata"].get("HTTPHeaders", {}).get("date")
            return parsedate_to_datetime(date) if date else None

    async def list_page(self, prefix: ObjectId, delimiter: str, after: str) -> tuple[list[ListedObject | str], str]:
        """A page of the objects whose key starts with ``prefix.key``, in key order, common prefixes as ``str``.

        ``after``: the token that came with the page before; ``""`` for the first. The token for the next page comes
        with this one; ``""``: there is none.
        """
        token = {"ContinuationToken": after} if after else {}
        with self._session.requesting("LIST", prefix):
            client = await self._session.client()
            page = await client.list_objects_v2(
                Bucket=prefix.bucket, Prefix=prefix.key, Delimiter=delimiter, **token, **account_arguments(self._config)
            )
        rows: list[ListedObject | str] = [row["Prefix"] for row in page.get("CommonPrefixes", ())]
        rows += [
            ListedObject(row["Key"], int(row["Size"]), bare_etag(row.get("ETag")), row.get("LastModified"))
            for row in page.get("Contents", ())
        ]
        return rows, str(page.get("NextContinuationToken", "")) if page.get("IsTruncated") else ""

    async def pending_page(
        self, prefix: ObjectId, after: tuple[str, str]
    ) -> tuple[list[PendingUpload], tuple[str, str]]:
        """A page of the multipart uploads under way (or abandoned) for keys that start with ``prefix.key``.

        ``after``: the markers that came with the page before; empty for the first, and returned empty with the last.
        """
        markers = {"KeyMarker": after[0], "UploadIdMarker": after[1]} if after[0] else {}
        try:
            with self._session.requesting("LIST UPLOADS", prefix):
                client = await self._session.client()
                page = await client.list_multipart_uploads(
                    Bucket=prefix.bucket, Prefix=prefix.key, **markers, **account_arguments(self._config)
                )
        except NotFound as error:
            if error.code != "NoSuchUpload":  # which rclone answers where there are none
                raise
            return [], ("", "")
        rows = [PendingUpload(row["Key"], row["UploadId"], row.get("Initiated")) for row in page.get("Uploads", ())]
        following = (str(page.get("NextKeyMarker", "")), str(page.get("NextUploadIdMarker", "")))
        return rows, following if page.get("IsTruncated", True) and following != after else ("", "")

    async def parts_page(self, target: ObjectId, upload_id: str, after: int) -> tuple[list[ListedPart], int]:
        """A page of the parts that a pending upload has, behind number ``after``; and where the next begins, 0: none.

        Where a store does not say whether that was all, the next page is asked for.

        Raises:
            NotFound: there is no such upload any more.
        """
        with self._session.requesting("LIST PARTS", target):
            client = await self._session.client()
            page = await client.list_parts(
                **_names(target), UploadId=upload_id, PartNumberMarker=after, **request_arguments(self._config)
            )
        parts = page.get("Parts", ())
        rows = [
            ListedPart(int(row["PartNumber"]), int(row["Size"]), row.get("LastModified"), row.get("ETag", ""))
            for row in parts
            if int(row["PartNumber"]) > after  # some list them all again
        ]
        return rows, rows[-1].number if rows and page.get("IsTruncated", True) else 0

    async def delete(self, target: ObjectId) -> None:
        """Delete an object; one that does not exist counts as deleted."""
        with self._session.requesting("DELETE", target):
            client = await self._session.client()
            await client.delete_object(**_names(target), **account_arguments(self._config))

    async def copy(self, source: ObjectId, target: ObjectId, etag: str) -> None:
        """Copy within the service, at most 5 GiB (S3's limit of one copy); ``etag``: what the source must still be.

        Raises:
            PreconditionFailed: it is another.
        """
        with self._session.requesting("COPY", source):
            client = await self._session.client()
            await client.copy_object(
                **_names(target),
                CopySource={"Bucket": source.bucket, "Key": source.key},
                **source_condition(etag),
                **copy_arguments(self._config),
            )

    async def create_upload(self, target: ObjectId, *, checksums: bool) -> str:
        """Begin a multipart upload; returns its id. ``checksums``: parts and whole will come with their CRC32."""
        announced = {"ChecksumAlgorithm": "CRC32", "ChecksumType": "FULL_OBJECT"} if checksums else {}
        with self._session.requesting("CREATE UPLOAD", target):
            client = await self._session.client()
            answer = await client.create_multipart_upload(
                **_names(target), **announced, **storage_arguments(self._config)
            )
        return str(answer["UploadId"])

    async def copy_part(
        self, source: ObjectId, target: ObjectId, upload_id: str, number: int, span: ByteRange, etag: str
    ) -> UploadedPart:
        """Copy a range of another object as a part; ``etag``: what the source must still be.

        Raises:
            PreconditionFailed: it is another.
        """
        with self._session.requesting("COPY PART", source):
            client = await self._session.client()
            answer = await client.upload_part_copy(
                **_names(target),
                UploadId=upload_id,
                PartNumber=number,
                CopySource={"Bucket": source.bucket, "Key": source.key},
                CopySourceRange=range_header(span),
                **source_condition(etag),
                **copy_source_arguments(self._config),
            )
        return UploadedPart(number, str(answer["CopyPartResult"]["ETag"]))

    async def complete_upload(
        self,
        target: ObjectId,
        upload_id: str,
        parts: Sequence[UploadedPart],
        *,
        crc32: int | None,
        replaces: Replaces = ANYTHING,
    ) -> ObjectInfo:
        """Make the object of its parts, in order. ``crc32``: of the full object, checked by the service.

        Returns:
            the ETag of the answer (``""`` where the service leaves it out); the size is the caller's to know: -1.
        """
        checks: dict[str, Any] = {}
        if crc32 is not None:
            checks = {"ChecksumCRC32": crc32_header(crc32), "ChecksumType": "FULL_OBJECT"}
        checks |= condition_arguments(replaces)
        with self._session.requesting("COMPLETE", target):
            client = await self._session.client()
            answer = await client.complete_multipart_upload(
                **_names(target),
                UploadId=upload_id,
                MultipartUpload=[(part.number, part.etag) for part in parts],  # see ``completion``
                **checks,
                **request_arguments(self._config),
            )
        return ObjectInfo(-1, bare_etag(answer.get("ETag")))

    async def abort_upload(self, target: ObjectId, upload_id: str) -> None:
        """Drop a multipart upload and its parts; the caller treats ``NotFound`` as done."""
        with self._session.requesting("ABORT", target):
            client = await self._session.client()
            await client.abort_multipart_upload(**_names(target), UploadId=upload_id, **account_arguments(self._config))


def _status(error: ClientError) -> int:
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])


def _names(target: ObjectId) -> dict[str, str]:
    return {"Bucket": target.bucket, "Key": target.key}
