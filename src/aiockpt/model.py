"""Values that every room shares: byte ranges, object names, object facts. Frozen, slotted, no I/O.

Ranges are half-open ``[start, end)`` everywhere; only the formatter of the Range header knows inclusive ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

SCHEME = "s3://"

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB

#: Is told of bytes that have landed in some memory: where in it they begin, and they. On a loop thread, so it must not
#: take long.
OnLanded = Callable[[int, memoryview], None]


@dataclass(frozen=True, slots=True, order=True)
class ByteRange:
    """Bytes ``[start, end)`` of an object."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ValueError(f"Invalid range: {self.start}-{self.end}")

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True, order=True)
class ObjectId:
    """One object: a bucket and a key."""

    bucket: str
    key: str

    @property
    def uri(self) -> str:
        """The ``s3://bucket/key`` form."""
        return f"{SCHEME}{self.bucket}/{self.key}"

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, name: str) -> ObjectId:
        """The object ``name`` below this one, joined with one slash."""
        return ObjectId(self.bucket, f"{self.key.rstrip('/')}/{name}" if self.key else name)

    @classmethod
    def parse(cls, uri: str | os.PathLike[str]) -> ObjectId:
        """Split ``s3://bucket[/key]``; the key may be empty.

        Raises:
            ValueError: another scheme, or no bucket.
        """
        text = os.fspath(uri)
        if not text.startswith(SCHEME):
            raise ValueError(f"Only s3:// URIs are supported, got {text!r}")
        bucket, _, key = text.removeprefix(SCHEME).partition("/")
        if not bucket:
            raise ValueError(f"Bucket name must be non-empty, got {text!r}")
        return cls(bucket, key)


@dataclass(frozen=True, slots=True)
class Replaces:
    """What a write may replace; where the store knows conditional writes, it sees to it.

    Attributes:
        nothing: the object must not exist yet.
        etag: the object must be this one; ``""``: no matter.
    """

    nothing: bool = False
    etag: str = ""


#: A write that replaces whatever is there.
ANYTHING = Replaces()

#: A write that must not replace anything.
NOTHING = Replaces(nothing=True)


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """Facts about a stored object: size in bytes, ETag as the server spells it (``""``: unknown)."""

    size: int
    etag: str = ""
