"""Operations on buckets: creating, deleting, listing what is in them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from urllib.parse import quote

from aiockpt.testing.answers import Answer, Refusal, document
from aiockpt.testing.documents import element, leaf, optional, parse_delete, root, timestamp
from aiockpt.testing.listing import page_of
from aiockpt.testing.requests import Request
from aiockpt.testing.state import State
from aiockpt.testing.store import StoredObject

_MAX_PAGE = 1000


def list_buckets(state: State, request: Request) -> Answer:  # noqa: ARG001  # every operation takes both
    """ListBuckets."""
    buckets = [
        element("Bucket", leaf("Name", name), leaf("CreationDate", timestamp(0))) for name in state.store.buckets()
    ]
    owner = element("Owner", leaf("ID", "aiockpt"), leaf("DisplayName", "aiockpt"))
    return document(root("ListAllMyBucketsResult", owner, element("Buckets", *buckets)))


def create_bucket(state: State, request: Request) -> Answer:
    """CreateBucket."""
    if request.bucket in state.store.buckets():
        raise Refusal("BucketAlreadyOwnedByYou")
    state.store.create_bucket(request.bucket)
    return Answer(headers={"Location": f"/{request.bucket}"})


def head_bucket(state: State, request: Request) -> Answer:
    """HeadBucket."""
    state.require_bucket(request.bucket)
    return Answer(headers={"x-amz-bucket-region": state.region})


def delete_bucket(state: State, request: Request) -> Answer:
    """DeleteBucket."""
    if state.store.keys(request.bucket):
        raise Refusal("BucketNotEmpty")
    state.store.delete_bucket(request.bucket)
    return Answer(204)


def get_bucket_location(state: State, request: Request) -> Answer:
    """GetBucketLocation; S3 leaves us-east-1 out."""
    state.require_bucket(request.bucket)
    return document(root("LocationConstraint", "" if state.region == "us-east-1" else state.region))


def list_objects(state: State, request: Request) -> Answer:
    """ListObjectsV2."""
    query = request.query
    encode = _encoder(query.get("encoding-type", ""))
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    token = query.get("continuation-token", "")
    limit = _limit(query.get("max-keys", str(_MAX_PAGE)))
    after = _decode_token(token) if token else query.get("start-after", "")
    keys = state.store.keys(request.bucket)
    page = page_of(keys, prefix=prefix, delimiter=delimiter, after=after, limit=limit)
    contents = [
        _entry(encode(key), stored) for key in page.keys if (stored := state.store.get(request.bucket, key)) is not None
    ]
    return document(
        root(
            "ListBucketResult",
            leaf("Name", request.bucket),
            leaf("Prefix", encode(prefix)),
            optional("Delimiter", encode(delimiter)),
            optional("EncodingType", query.get("encoding-type")),
            optional("ContinuationToken", token),
            optional("StartAfter", encode(query.get("start-after", ""))),
            leaf("MaxKeys", limit),
            leaf("KeyCount", len(page.keys) + len(page.prefixes)),
            leaf("IsTruncated", page.next_after is not None and limit > 0),
            optional("NextContinuationToken", _token(page.next_after) if page.next_after and limit else None),
            *contents,
            *(element("CommonPrefixes", leaf("Prefix", encode(name))) for name in page.prefixes),
        )
    )


def _entry(key: str, stored: StoredObject) -> str:
    return element(
        "Contents",
        leaf("Key", key),
        leaf("LastModified", timestamp(stored.modified)),
        leaf("ETag", stored.etag),
        *(leaf("ChecksumAlgorithm", name.upper()) for name in stored.checksums),
        leaf("Size", stored.content.size),
        leaf("StorageClass", "STANDARD"),
    )


def _encoder(encoding_type: str) -> Callable[[str], str]:
    if encoding_type not in {"", "url"}:
        raise Refusal("InvalidArgument", "The only encoding type is url.")
    return (lambda text: quote(text, safe="/")) if encoding_type else str


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise Refusal("InvalidArgument", "max-keys is not a number.")
    return min(int(text), _MAX_PAGE)


def _token(key: str) -> str:
    return base64.urlsafe_b64encode(key.encode()).decode("ascii")


def _decode_token(token: str) -> str:
    try:
        return base64.urlsafe_b64decode(token).decode()
    except (binascii.Error, ValueError):
        raise Refusal("InvalidArgument", "The continuation token is none of ours.") from None


def delete_objects(state: State, request: Request) -> Answer:
    """DeleteObjects."""
    state.require_bucket(request.bucket)
    keys, quiet = parse_delete(request.content.to_bytes())
    for key in keys:
        state.store.delete(request.bucket, key)
    deleted = [] if quiet else [element("Deleted", leaf("Key", key)) for key in keys]
    return document(root("DeleteResult", *deleted))
