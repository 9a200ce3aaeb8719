"""Answers: what an operation returns, and the refusals that it raises. Values only."""

from __future__ import annotations

import http
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate

from aiockpt.testing.content import EMPTY, Content

#: S3's error codes with the status and text that they come with.
_ERRORS = {
    "AccessDenied": (403, "Access Denied"),
    "BadDigest": (400, "The checksum you specified did not match what was received."),
    "BucketAlreadyOwnedByYou": (409, "The bucket exists already and is yours."),
    "BucketNotEmpty": (409, "The bucket is not empty."),
    "EntityTooSmall": (400, "A part other than the last is smaller than the minimum of 5 MiB."),
    "EntityTooLarge": (400, "The upload is larger than the maximum of 5 GiB for one request."),
    "ExpiredToken": (400, "The provided token has expired."),
    "IncompleteBody": (400, "The body does not have the announced length."),
    "InternalError": (500, "The operation failed on purpose, or by a fault of the endpoint."),
    "InvalidAccessKeyId": (403, "The access key ID does not exist here."),
    "InvalidArgument": (400, "Invalid Argument"),
    "InvalidDigest": (400, "The checksum you specified is no such checksum."),
    "InvalidPart": (400, "A part was not found, or its ETag or checksum is another."),
    "InvalidPartOrder": (400, "The parts are not listed in ascending order."),
    "InvalidRange": (416, "The range does not lie in the object."),
    "InvalidRequest": (400, "Invalid Request"),
    "InvalidURI": (400, "The request's head is malformed or too long."),
    "KeyTooLongError": (400, "The key is longer than 1024 bytes."),
    "MalformedXML": (400, "The document is not what the operation expects."),
    "MethodNotAllowed": (405, "There is no such operation."),
    "MissingContentLength": (411, "The request needs a Content-Length."),
    "NoSuchBucket": (404, "The bucket does not exist."),
    "NoSuchKey": (404, "The key does not exist."),
    "NoSuchUpload": (404, "The multipart upload does not exist; it may have been completed or aborted."),
    "NotImplemented": (501, "The operation is not implemented here."),
    "NotModified": (304, "Not Modified"),
    "PreconditionFailed": (412, "A precondition that you specified did not hold."),
    "SlowDown": (503, "Please reduce your request rate."),
    "XAmzContentSHA256Mismatch": (400, "The body does not have the SHA-256 that was signed."),
}

XML = "application/xml"


class Refusal(Exception):  # an answer rather than an error of ours
    """An operation that is answered with an error document.

    Args:
        code: S3's error code.
        message: instead of the usual text.
        status: instead of the usual one.
        headers: for the answer.
    """

    def __init__(
        self, code: str, message: str = "", *, status: int = 0, headers: Mapping[str, str] | None = None
    ) -> None:
        usual_status, usual_message = _ERRORS.get(code, (500, code))
        self.code = code
        self.message = message or usual_message
        self.status = status or usual_status
        self.headers = dict(headers or {})
        super().__init__(f"{self.status} {code}")


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer.

    Attributes:
        headers: without the framing.
        body: what is sent; empty for HEAD.
        length: the Content-Length if it is not the body's size.
        error_code: S3's code, for the counters.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Content = EMPTY
    length: int | None = None
    error_code: str = ""

    def head(self, request_id: str, *, length_error: int = 0, close: bool = False) -> bytes:
        """The serialized head."""
        length = (self.body.size if self.length is None else self.length) + length_error
        lines = [
            f"HTTP/1.1 {self.status} {http.HTTPStatus(self.status).phrase}",
            f"Date: {formatdate(usegmt=True)}",
            f"x-amz-request-id: {request_id}",
        ]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if self.status not in {204, 304}:
            lines.append(f"Content-Length: {length}")
        if close:
            lines.append("Connection: close")
        return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")


def document(data: bytes, status: int = 200) -> Answer:
    """An answer that is an XML document."""
    return Answer(status, {"Content-Type": XML}, Content.of(data))
