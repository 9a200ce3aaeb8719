"""Operations on multipart uploads."""

from __future__ import annotations

from dataclasses import replace

from aiockpt.testing.answers import Answer, Refusal, document
from aiockpt.testing.checksums import ALGORITHMS, checksum_headers, composite, crc32_text, given_checksums
from aiockpt.testing.conditions import check_write
from aiockpt.testing.content import Content
from aiockpt.testing.documents import element, leaf, optional, parse_complete, root, timestamp
from aiockpt.testing.objects import copied_content
from aiockpt.testing.requests import Request
from aiockpt.testing.state import State, object_headers
from aiockpt.testing.store import StoredObject, etag_of
from aiockpt.testing.uploads import MAX_PART_NUMBER, Part, Upload, chosen_parts

_TYPES = {"", "FULL_OBJECT", "COMPOSITE"}
_MAX_PAGE = 1000


def create_multipart_upload(state: State, request: Request) -> Answer:
    """CreateMultipartUpload."""
    state.require_bucket(request.bucket)
    algorithm = request.header("x-amz-checksum-algorithm").lower()
    checksum_type = request.header("x-amz-checksum-type").upper()
    if algorithm not in {"", *ALGORITHMS} or checksum_type not in _TYPES or (checksum_type and not algorithm):
        raise Refusal("InvalidRequest", "The checksum algorithm or type is none, or they do not go together.")
    if algorithm and not checksum_type:
        checksum_type = "FULL_OBJECT" if algorithm == "crc64nvme" else "COMPOSITE"
    upload = state.uploads.create(request.bucket, request.key, object_headers(request), algorithm, checksum_type)
    chosen = {"x-amz-checksum-algorithm": algorithm.upper(), "x-amz-checksum-type": checksum_type} if algorithm else {}
    answer = root(
        "InitiateMultipartUploadResult",
        leaf("Bucket", request.bucket),
        leaf("Key", request.key),
        leaf("UploadId", upload.upload_id),
    )
    return Answer(200, {"Content-Type": "application/xml"} | chosen, Content.of(answer))


def upload_part(state: State, request: Request) -> Answer:
    """UploadPart; the body's checksums have been verified."""
    checksums = given_checksums(request.headers)
    etag = _put_part(state, request, request.content, checksums)
    return Answer(headers={"ETag": etag} | checksum_headers(checksums, ""))


def give_opaque_etag(state: State, request: Request, answer: Answer) -> Answer:
    """The answer to UploadPart, had it stored the part under an ETag that says nothing of its bytes."""
    parts, number = _upload(state, request).parts, int(request.query["partNumber"])
    etag = state.uploads.opaque_etag()
    parts[number] = replace(parts[number], etag=etag)
    return replace(answer, headers={**answer.headers, "ETag": etag})


def upload_part_copy(state: State, request: Request) -> Answer:
    """UploadPartCopy."""
    etag = _put_part(state, request, copied_content(state, request), {})
    return document(root("CopyPartResult", leaf("ETag", etag)))


def _put_part(state: State, request: Request, content: Content, checksums: dict[str, str]) -> str:
    upload = _upload(state, request)
    number = request.query.get("partNumber", "")
    if not (number.isascii() and number.isdigit() and 1 <= int(number[:9]) <= MAX_PART_NUMBER):
        raise Refusal("InvalidArgument", "The part number is not between 1 and 10000.")
    if upload.algorithm == "crc32":
        checksums = {"crc32": crc32_text(content.crc32)} | checksums
    etag = etag_of(content)
    upload.parts[int(number)] = Part(content, etag, checksums)
    return etag


def _upload(state: State, request: Request) -> Upload:
    state.require_bucket(request.bucket)
    return state.uploads.get(request.bucket, request.key, request.query["uploadId"])


def complete_multipart_upload(state: State, request: Request) -> Answer:
    """CompleteMultipartUpload."""
    upload = _upload(state, request)
    parts = chosen_parts(upload, parse_complete(request.content.to_bytes()))
    check_write(request, state.store.get(upload.bucket, upload.key))
    content = Content.concat(part.content for part in parts)
    size = request.header("x-amz-mp-object-size")
    if size and size != str(content.size):
        raise Refusal("InvalidRequest", "The object does not have the announced size.")
    checksums = _checksums(upload, parts, content, given_checksums(request.headers))
    stored = StoredObject(
        content,
        etag_of(content, len(parts)),
        upload.headers,
        checksums,
        upload.checksum_type or "FULL_OBJECT",
    )
    state.store.put(upload.bucket, upload.key, stored)
    state.uploads.remove(upload)
    return document(
        root(
            "CompleteMultipartUploadResult",
            leaf("Location", request.path),
            leaf("Bucket", upload.bucket),
            leaf("Key", upload.key),
            leaf("ETag", stored.etag),
            *(leaf(f"Checksum{name.upper()}", value) for name, value in checksums.items()),
            optional("ChecksumType", stored.checksum_type if checksums else ""),
        )
    )


def _checksums(upload: Upload, parts: list[Part], content: Content, given: dict[str, str]) -> dict[str, str]:
    """The object's checksums, by algorithm: as the upload's type wants them, checked against those given.

    Raises:
        Refusal: BadDigest.
    """
    known = {"crc32": crc32_text(content.crc32)}
    if upload.checksum_type == "COMPOSITE":
        values = [part.checksums.get(upload.algorithm, "") for part in parts]
        known = {upload.algorithm: composite(upload.algorithm, values)} if all(values) else {}
    if any(known.get(name, value) != value for name, value in given.items()):
        raise Refusal("BadDigest")
    wanted = {upload.algorithm, *given}
    return given | {name: value for name, value in known.items() if value and name in wanted}


def abort_multipart_upload(state: State, request: Request) -> Answer:
    """AbortMultipartUpload."""
    state.uploads.remove(_upload(state, request))
    return Answer(204)


def list_parts(state: State, request: Request) -> Answer:
    """ListParts."""
    upload = _upload(state, request)
    marker = _number(request, "part-number-marker", 0)
    limit = min(_number(request, "max-parts", _MAX_PAGE), _MAX_PAGE)
    later = sorted(number for number in upload.parts if number > marker)
    listed = later[:limit]
    return document(
        root(
            "ListPartsResult",
            leaf("Bucket", upload.bucket),
            leaf("Key", upload.key),
            leaf("UploadId", upload.upload_id),
            leaf("PartNumberMarker", marker),
            leaf("NextPartNumberMarker", listed[-1] if listed else marker),
            leaf("MaxParts", limit),
            leaf("IsTruncated", len(later) > limit),
            *(_part_entry(number, upload.parts[number]) for number in listed),
        )
    )


def _part_entry(number: int, part: Part) -> str:
    return element(
        "Part",
        leaf("PartNumber", number),
        leaf("LastModified", timestamp(part.modified)),
        leaf("ETag", part.etag),
        leaf("Size", part.content.size),
        *(leaf(f"Checksum{name.upper()}", value) for name, value in part.checksums.items()),
    )


def list_multipart_uploads(state: State, request: Request) -> Answer:
    """ListMultipartUploads."""
    state.require_bucket(request.bucket)
    prefix = request.query.get("prefix", "")
    marker = (request.query.get("key-marker", "").encode(), request.query.get("upload-id-marker", ""))
    limit = min(_number(request, "max-uploads", _MAX_PAGE), _MAX_PAGE)
    later = [
        upload
        for upload in state.uploads.of_bucket(request.bucket)
        if upload.key.startswith(prefix) and _is_behind(upload, *marker)
    ]
    listed = later[:limit]
    truncated = len(later) > limit
    return document(
        root(
            "ListMultipartUploadsResult",
            leaf("Bucket", request.bucket),
            leaf("KeyMarker", request.query.get("key-marker", "")),
            leaf("UploadIdMarker", request.query.get("upload-id-marker", "")),
            optional("NextKeyMarker", listed[-1].key if truncated and listed else ""),
            optional("NextUploadIdMarker", listed[-1].upload_id if truncated and listed else ""),
            leaf("Prefix", prefix),
            leaf("MaxUploads", limit),
            leaf("IsTruncated", truncated),
            *map(_upload_entry, listed),
        )
    )


def _is_behind(upload: Upload, key: bytes, upload_id: str) -> bool:
    own = upload.key.encode()
    return own > key or (own == key and bool(upload_id) and upload.upload_id > upload_id)


def _upload_entry(upload: Upload) -> str:
    return element(
        "Upload",
        leaf("Key", upload.key),
        leaf("UploadId", upload.upload_id),
        leaf("Initiated", timestamp(upload.initiated)),
        leaf("StorageClass", "STANDARD"),
    )


def _number(request: Request, name: str, default: int) -> int:
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise Refusal("InvalidArgument", f"{name} is not a number.")
    return int(text)
