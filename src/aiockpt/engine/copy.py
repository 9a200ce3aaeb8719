"""Copies within the service, of any size: one request up to 5 GiB, a multipart upload of copied ranges above."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import anyio

from aiockpt.engine.crew import run_all
from aiockpt.engine.multipart import ABORT_TIMEOUT_S, MultipartUpload
from aiockpt.engine.standing import Whole, must_still_be
from aiockpt.errors import ObjectChanged, PreconditionFailed
from aiockpt.model import ByteRange, GiB, ObjectId, ObjectInfo
from aiockpt.plan.parts import copy_parts
from aiockpt.plan.retry import Operation
from aiockpt.s3.control import UploadedPart
from aiockpt.wire.s3 import if_match

if TYPE_CHECKING:
    from aiockpt.engine.engine import LoopEngine

#: S3's limit of one CopyObject; larger objects are copied part by part.
MAX_COPY_BYTES = 5 * GiB

#: Parts of a multipart copy: the service copies them without us, so they may be large.
COPY_PART_BYTES = GiB


async def copy_object(engine: LoopEngine, source: ObjectId, target: ObjectId) -> None:
    """Copy ``source`` as it is now.

    Raises:
        ObjectChanged: it was replaced meanwhile.
    """
    info = await engine.head(source)
    try:
        if info.size <= MAX_COPY_BYTES:
            control = engine.client.control
            await engine.attempts(Operation.COPY, source, lambda: control.copy(source, target, info.etag))
        else:
            await _copy_in_parts(engine, source, target, info)
    except PreconditionFailed as error:
        message = f"{source.uri} was replaced while it was copied: it had ETag {info.etag}"
        raise ObjectChanged(message, bucket=source.bucket, key=source.key, request_id=error.request_id) from error


async def _copy_in_parts(engine: LoopEngine, source: ObjectId, target: ObjectId, info: ObjectInfo) -> None:
    upload = MultipartUpload(engine, target, checksums=False)
    try:
        await upload.begin()
        spans = copy_parts(info.size, COPY_PART_BYTES)
        parts = await _copy_parts(engine, upload, source, info.etag, spans)
        if not if_match(info.etag):  # then it could not be pinned
            await must_still_be(engine, source, info.etag)
        await upload.complete(parts, Whole(info.size, None))
    except BaseException:
        with anyio.CancelScope(shield=True):
            await upload.abort_quietly(ABORT_TIMEOUT_S)
        raise


async def _copy_parts(
    engine: LoopEngine, upload: MultipartUpload, source: ObjectId, etag: str, spans: Sequence[ByteRange]
) -> list[UploadedPart]:
    copied: dict[int, UploadedPart] = {}
    control = engine.client.control

    async def copy_one(number: int, span: ByteRange) -> None:
        copied[number] = await engine.attempts(
            Operation.COPY,
            source,
            lambda: control.copy_part(source, upload.target, upload.upload_id, number, span, etag),
        )

    await run_all(partial(copy_one, number, span) for number, span in enumerate(spans, 1))
    return [copied[number] for number in sorted(copied)]
