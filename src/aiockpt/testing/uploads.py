"""Multipart uploads under way: their parts, and the rules for making an object of them. No I/O."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aiockpt.model import MiB
from aiockpt.testing.answers import Refusal
from aiockpt.testing.content import Content
from aiockpt.testing.documents import PartReference

#: S3's limits.
MIN_PART_BYTES = 5 * MiB
MAX_PART_NUMBER = 10_000


@dataclass(frozen=True, slots=True)
class Part:
    """An uploaded part; ``checksums`` are those that its writer gave, by algorithm."""

    content: Content
    etag: str
    checksums: Mapping[str, str]
    modified: float = field(default_factory=time.time)


@dataclass(slots=True)
class Upload:
    """An upload under way.

    Attributes:
        headers: those that the object is to have.
        algorithm: of the checksums, in lower case; ``""``: none was chosen.
        checksum_type: ``FULL_OBJECT``, ``COMPOSITE``, or ``""``.
        parts: by number.
    """

    upload_id: str
    bucket: str
    key: str
    headers: Mapping[str, str]
    algorithm: str
    checksum_type: str
    parts: dict[int, Part] = field(default_factory=dict)
    initiated: float = field(default_factory=time.time)


class Uploads:
    """All uploads under way."""

    def __init__(self) -> None:
        self._by_id: dict[str, Upload] = {}
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._by_id)

    def create(self, bucket: str, key: str, headers: Mapping[str, str], algorithm: str, checksum_type: str) -> Upload:
        """Begin an upload; ids are numbered."""
        upload_id = f"upload-{next(self._numbers):06d}"
        upload = Upload(upload_id, bucket, key, headers, algorithm, checksum_type)
        self._by_id[upload_id] = upload
        return upload

    def opaque_etag(self) -> str:
        """An ETag that there was not before."""
        return f'"opaque-{next(self._numbers):06d}"'

    def get(self, bucket: str, key: str, upload_id: str) -> Upload:
        """An upload.

        Raises:
            Refusal: NoSuchUpload, also if it is for another key.
        """
        upload = self._by_id.get(upload_id)
        if upload is None or (upload.bucket, upload.key) != (bucket, key):
            raise Refusal("NoSuchUpload")
        return upload

    def remove(self, upload: Upload) -> None:
        """End an upload; its parts are gone unless an object holds them."""
        del self._by_id[upload.upload_id]

    def clear(self) -> None:
        """End all of them."""
        self._by_id.clear()

    def of_bucket(self, bucket: str) -> list[Upload]:
        """The uploads in a bucket, by key and then by age."""
        return sorted(
            (upload for upload in self._by_id.values() if upload.bucket == bucket),
            key=lambda upload: (upload.key.encode(), upload.upload_id),
        )


def chosen_parts(upload: Upload, references: Sequence[PartReference]) -> list[Part]:
    """The parts that a request to complete ``upload`` names.

    Raises:
        Refusal: InvalidPartOrder, InvalidPart, or EntityTooSmall.
    """
    numbers = [reference.number for reference in references]
    if any(second <= first for first, second in itertools.pairwise(numbers)):
        raise Refusal("InvalidPartOrder")
    parts = [_part(upload, reference) for reference in references]
    if any(part.content.size < MIN_PART_BYTES for part in parts[:-1]):
        raise Refusal("EntityTooSmall")
    return parts


def _part(upload: Upload, reference: PartReference) -> Part:
    part = upload.parts.get(reference.number)
    if part is None or part.etag.strip('"') != reference.etag.strip('"'):
        raise Refusal("InvalidPart")
    if any(part.checksums.get(name, value) != value for name, value in reference.checksums.items()):
        raise Refusal("InvalidPart")
    return part
