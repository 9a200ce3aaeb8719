"""Objects at rest, in memory: buckets, keys, and what is known about each object."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from aiockpt.testing.answers import Refusal
from aiockpt.testing.content import Content, with_flipped_bit


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object.

    Attributes:
        etag: in quotes; opaque, and no MD5 (see ``etag_of``).
        headers: those that came with it and are sent with it: Content-Type, user metadata and the like.
        checksums: S3's checksums that its writer gave, by algorithm.
        checksum_type: ``FULL_OBJECT`` or ``COMPOSITE``.
        modified: when it was written, in seconds since the epoch.
    """

    content: Content
    etag: str
    headers: Mapping[str, str] = field(default_factory=dict)
    checksums: Mapping[str, str] = field(default_factory=dict)
    checksum_type: str = "FULL_OBJECT"
    modified: float = field(default_factory=time.time)


def etag_of(content: Content, parts: int = 0) -> str:
    """The ETag of some content, uploaded in so many parts (0: in one request).

    CRC32 and size: an MD5 would cost five times what the rest of serving costs. It is shorter than an MD5, so
    that nobody takes it for one.
    """
    suffix = f"-{parts}" if parts else ""
    return f'"{content.crc32:08x}{content.size:012x}{suffix}"'


class Store(Protocol):
    """Where objects are. Operations on a bucket that does not exist raise ``Refusal`` NoSuchBucket."""

    def buckets(self) -> list[str]:
        """Names of all buckets, sorted."""

    def create_bucket(self, bucket: str) -> None:
        """Make an empty bucket; one that exists stays as it is."""

    def delete_bucket(self, bucket: str) -> None:
        """Remove an empty bucket."""

    def keys(self, bucket: str) -> list[str]:
        """The keys in a bucket, in the order of their UTF-8 bytes."""

    def get(self, bucket: str, key: str) -> StoredObject | None:
        """An object, None if there is none."""

    def put(self, bucket: str, key: str, stored: StoredObject) -> None:
        """Create or replace an object."""

    def delete(self, bucket: str, key: str) -> None:
        """Remove an object; none is fine."""

    def flip_bit(self, bucket: str, key: str, at_byte: int) -> None:
        """Invert the lowest bit of a stored byte and leave all that is known about the object as it was."""


class MemoryStore:
    """Everything in this process's memory, in the buffers in which it was received."""

    def __init__(self) -> None:
        self._buckets: dict[str, dict[str, StoredObject]] = {}

    def _objects(self, bucket: str) -> dict[str, StoredObject]:
        try:
            return self._buckets[bucket]
        except KeyError:
            raise Refusal("NoSuchBucket") from None

    def buckets(self) -> list[str]:
        """See ``Store``."""
        return sorted(self._buckets)

    def create_bucket(self, bucket: str) -> None:
        """See ``Store``."""
        self._buckets.setdefault(bucket, {})

    def delete_bucket(self, bucket: str) -> None:
        """See ``Store``."""
        self._objects(bucket)
        del self._buckets[bucket]

    def keys(self, bucket: str) -> list[str]:
        """See ``Store``."""
        return sorted(self._objects(bucket), key=str.encode)

    def get(self, bucket: str, key: str) -> StoredObject | None:
        """See ``Store``."""
        return self._objects(bucket).get(key)

    def put(self, bucket: str, key: str, stored: StoredObject) -> None:
        """See ``Store``."""
        self._objects(bucket)[key] = stored

    def delete(self, bucket: str, key: str) -> None:
        """See ``Store``."""
        self._objects(bucket).pop(key, None)

    def flip_bit(self, bucket: str, key: str, at_byte: int) -> None:
        """See ``Store``. Answers that are on their way keep the bit as it was."""
        stored = self._objects(bucket)[key]
        pieces = tuple(with_flipped_bit(stored.content.pieces, at_byte))
        self._objects(bucket)[key] = replace(stored, content=replace(stored.content, pieces=pieces))
