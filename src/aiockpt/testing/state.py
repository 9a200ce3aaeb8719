"""What operations work on: the store, the uploads under way, and the endpoint's fixed facts."""

from __future__ import annotations

from dataclasses import dataclass, field

from aiockpt.testing.answers import Refusal
from aiockpt.testing.requests import Request
from aiockpt.testing.store import Store, StoredObject
from aiockpt.testing.uploads import Uploads


@dataclass(frozen=True, slots=True)
class State:
    """See the module."""

    store: Store
    region: str
    uploads: Uploads = field(default_factory=Uploads)

    def require_bucket(self, bucket: str) -> None:
        """Make sure of a bucket.

        Raises:
            Refusal: NoSuchBucket.
        """
        if bucket not in self.store.buckets():
            raise Refusal("NoSuchBucket")

    def require(self, bucket: str, key: str) -> StoredObject:
        """An object that must be there.

        Raises:
            Refusal: NoSuchBucket or NoSuchKey.
        """
        stored = self.store.get(bucket, key)
        if stored is None:
            raise Refusal("NoSuchKey")
        return stored


#: Headers of a write that belong to the object and come back with it, besides user metadata.
_OBJECT_HEADERS = ("cache-control", "content-disposition", "content-language", "content-type", "expires")


def object_headers(request: Request) -> dict[str, str]:
    """The headers of a write that belong to the object: not ``aws-chunked``, which is about the transfer."""
    kept = {
        name: text
        for name, text in request.headers.items()
        if name in _OBJECT_HEADERS or name.startswith("x-amz-meta-")
    }
    encodings = [coding.strip() for coding in request.header("content-encoding").split(",")]
    if encoding := ", ".join(coding for coding in encodings if coding not in {"", "aws-chunked"}):
        kept["content-encoding"] = encoding
    return {"content-type": "binary/octet-stream"} | kept
