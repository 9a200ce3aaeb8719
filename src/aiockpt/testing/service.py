"""The S3 service without its network: a complete request in, an answer out."""

from __future__ import annotations

import http
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from aiockpt.testing import buckets, multipart, objects
from aiockpt.testing.answers import Answer, Refusal, document
from aiockpt.testing.checksums import checksum_headers, verify
from aiockpt.testing.content import Content
from aiockpt.testing.documents import error
from aiockpt.testing.faults import Disturbance, FaultKind
from aiockpt.testing.requests import CONDITIONS, Request
from aiockpt.testing.state import State

Operation = Callable[[State, Request], Answer]

OPERATIONS: dict[str, Operation] = {
    "AbortMultipartUpload": multipart.abort_multipart_upload,
    "CompleteMultipartUpload": multipart.complete_multipart_upload,
    "CopyObject": objects.copy_object,
    "CreateBucket": buckets.create_bucket,
    "CreateMultipartUpload": multipart.create_multipart_upload,
    "DeleteBucket": buckets.delete_bucket,
    "DeleteObject": objects.delete_object,
    "DeleteObjects": buckets.delete_objects,
    "GetBucketLocation": buckets.get_bucket_location,
    "GetObject": objects.get_object,
    "HeadBucket": buckets.head_bucket,
    "HeadObject": objects.head_object,
    "ListBuckets": buckets.list_buckets,
    "ListMultipartUploads": multipart.list_multipart_uploads,
    "ListObjectsV2": buckets.list_objects,
    "ListParts": multipart.list_parts,
    "PutObject": objects.put_object,
    "UploadPart": multipart.upload_part,
    "UploadPartCopy": multipart.upload_part_copy,
}

#: The operations whose body is an object's or a part's bytes.
UPLOADS = frozenset({"PutObject", "UploadPart"})

_ETAG_ELEMENT = re.compile(rb"<ETag>[^<]*</ETag>")

#: Here the checksum headers are about the object, not about the request's body.
_ABOUT_OBJECT = "CompleteMultipartUpload"
_CHECKSUM_HEADERS = frozenset(f"x-amz-checksum-{name}" for name in ("crc32", "crc32c", "crc64nvme", "sha1", "sha256"))


#: What a fault makes the service overlook.
_IGNORED = {
    FaultKind.IGNORE_CONDITIONS: CONDITIONS,
    FaultKind.IGNORE_CHECKSUMS: _CHECKSUM_HEADERS,
    FaultKind.WHOLE_OBJECT: frozenset({"range"}),
}


@dataclass(slots=True)
class Credentials:
    """Whose requests are served.

    Attributes:
        access_key: the access key ID that there is, and (with ``-`` and more behind it) those of temporary credentials.
            Signatures are not verified.
        anonymous: whether unsigned requests are served too.
        expired: access key IDs that are served no more.
    """

    access_key: str
    anonymous: bool = False
    expired: set[str] = field(default_factory=set)

    def check(self, request: Request) -> None:
        """Let a request pass.

        Raises:
            Refusal: AccessDenied, ExpiredToken or InvalidAccessKeyId.
        """
        key = request.access_key
        if key is None:
            if not self.anonymous:
                raise Refusal("AccessDenied")
        elif key in self.expired:
            raise Refusal("ExpiredToken")
        elif key != self.access_key and not key.startswith(f"{self.access_key}-"):
            raise Refusal("InvalidAccessKeyId")


def perform(state: State, operation: str, request: Request, disturbance: Disturbance) -> Answer:
    """Verify the body and perform the operation, as far as its faults let it.

    Raises:
        Refusal: S3 says no.
    """
    if fault := disturbance.get(FaultKind.ERROR):
        retry_after = {} if fault.retry_after_s is None else {"Retry-After": str(fault.retry_after_s)}
        raise Refusal(fault.code, status=fault.status, headers=retry_after)
    if fault := disturbance.get(FaultKind.ERROR_IN_200):
        return document(error(Refusal(fault.code), request.path, "0"))
    if disturbance.get(FaultKind.REFUSE_CHUNKED) and _is_chunked(request):
        raise Refusal("MissingContentLength")
    if not disturbance.get(FaultKind.IGNORE_CHECKSUMS):
        about_body = request.without(_CHECKSUM_HEADERS) if operation == _ABOUT_OBJECT else request
        verify(request.content, about_body.headers)
    for kind, headers in _IGNORED.items():
        if disturbance.get(kind):
            request = request.without(headers)
    answer = OPERATIONS[operation](state, request)
    if operation == "UploadPart" and disturbance.get(FaultKind.OPAQUE_ETAG):
        answer = multipart.give_opaque_etag(state, request, answer)
    return _disturbed(state, request, answer, disturbance)


def _is_chunked(request: Request) -> bool:
    """Whether the body came in chunks, HTTP's or S3's."""
    encodings = f"{request.header('transfer-encoding')},{request.header('content-encoding')}"
    streams = request.header("x-amz-content-sha256").startswith("STREAMING-")
    return "chunked" in encodings or streams or "x-amz-trailer" in request.headers


def _disturbed(state: State, request: Request, answer: Answer, disturbance: Disturbance) -> Answer:
    """An answer as its faults let it be."""
    headers = dict(answer.headers)
    is_range = answer.status == http.HTTPStatus.PARTIAL_CONTENT
    if is_range and disturbance.get(FaultKind.WHOLE_CHECKSUM):
        stored = state.require(request.bucket, request.key)
        headers |= checksum_headers(stored.checksums, stored.checksum_type)
    if disturbance.get(FaultKind.WEAK_ETAG) and "ETag" in headers:
        headers["ETag"] = f"W/{headers['ETag']}"
    answer = replace(answer, headers=headers)
    if is_range and disturbance.get(FaultKind.BARE_RANGE):
        del headers["Content-Range"]
        answer = replace(answer, status=200)
    return _without_etag(answer) if disturbance.get(FaultKind.EMPTY_ETAG) else answer


def _without_etag(answer: Answer) -> Answer:
    headers = {name: text for name, text in answer.headers.items() if name != "ETag"}
    if answer.headers.get("Content-Type") != "application/xml":
        return replace(answer, headers=headers)
    body = _ETAG_ELEMENT.sub(b"<ETag></ETag>", answer.body.to_bytes())
    return replace(answer, headers=headers, body=Content.of(body))


def refused(refusal: Refusal, request: Request, request_id: str) -> Answer:
    """The answer that a refusal is."""
    body = Content.of(error(refusal, request.path, request_id)) if refusal.status != 304 else Content()
    headers = {"Content-Type": "application/xml"} | refusal.headers
    if request.method == "HEAD":
        return Answer(refusal.status, headers, length=body.size, error_code=refusal.code)
    return Answer(refusal.status, headers, body, error_code=refusal.code)
