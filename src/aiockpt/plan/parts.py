"""S3's multipart arithmetic, and cutting a sequence of buffers into parts without copying.

One job: how large each part is and which bytes it holds. It knows nothing of how parts are sent. The limits
are those of "Amazon S3 multipart upload limits" in the Amazon S3 User Guide: 10,000 parts, each of 5 MiB to 5
GiB except that the last may be smaller. Their product, 48.8 TiB, is the largest object (formerly 5 TiB).
"""

from __future__ import annotations

from dataclasses import dataclass

from aiockpt.errors import ConfigError
from aiockpt.model import ByteRange, GiB, MiB

MAX_PARTS = 10_000
MIN_PART_BYTES = 5 * MiB
MAX_PART_BYTES = 5 * GiB
MAX_OBJECT_BYTES = MAX_PARTS * MAX_PART_BYTES

#: How many parts of an object of unknown size are of one size, before it doubles. From 8 MiB parts a stream
#: has written 7 GiB when it first doubles, and 49 GiB when it reaches 64 MiB; yet from the smallest parts,
#: too, 10,000 reach 5 TiB. To reach 48.8 TiB every part would have to be of 5 GiB, and a writer holds several
#: of them in memory.
PARTS_PER_DOUBLING = 900


def check_part_size(part_size: int) -> None:
    """Refuse a part size that S3 would refuse.

    Raises:
        ConfigError: it is outside 5 MiB to 5 GiB.
    """
    if not MIN_PART_BYTES <= part_size <= MAX_PART_BYTES:
        raise ConfigError(f"part_size must lie between 5 MiB and 5 GiB, got {part_size} bytes")


def part_bytes(total_bytes: int | None, preferred: int) -> int:
    """The size of the parts of an object, or of its first part if the object's size is not known.

    Args:
        total_bytes: the object's size; None if it is not known.
        preferred: a valid part size, which is exceeded only if 10,000 such parts would not do.

    Raises:
        ConfigError: ``preferred`` is no valid part size, or the object is larger than S3 stores.
    """
    check_part_size(preferred)
    if total_bytes is None:
        return part_bytes_at(1, preferred)
    if total_bytes > MAX_OBJECT_BYTES:
        raise ConfigError(f"an object of {total_bytes} bytes is larger than S3 stores (48.8 TiB)")
    if total_bytes <= MAX_PARTS * preferred:
        return preferred
    return -(-total_bytes // (MAX_PARTS * MiB)) * MiB


def part_bytes_at(number: int, preferred: int) -> int:
    """The size of part ``number`` (from 1) of an object whose size is not known.

    Raises:
        ConfigError: there is no such part: from ``preferred`` on, parts have not grown fast enough.
    """
    if number > MAX_PARTS:
        raise ConfigError("the object needs more than 10,000 parts: choose a larger part_size")
    doublings = (number - 1) // PARTS_PER_DOUBLING
    return min(MAX_PART_BYTES, preferred << doublings)


def copy_parts(size: int, part: int) -> list[ByteRange]:
    """The ranges of a multipart copy: of at least ``part`` bytes each, except the last.

    Raises:
        ConfigError: as for ``part_bytes``.
    """
    step = part_bytes(size, part)
    return [ByteRange(start, min(start + step, size)) for start in range(0, size, step)]


@dataclass(frozen=True, slots=True)
class Part:
    """One part: its number (from 1), and its bytes as views of the memory that was pushed."""

    number: int
    segments: tuple[memoryview, ...]
    nbytes: int


class PartCutter:
    """Cuts what is pushed into parts, in order.

    It never copies: parts are slices of the pushed views, whose memory must stay as it is until the parts
    that show it have been sent. Parts grow only where the object's size is not known, since some stores
    (Cloudflare R2) want all but the last to be equal.

    Raises:
        ConfigError: as for ``part_bytes``.
    """

    def __init__(self, preferred: int, total_bytes: int | None = None) -> None:
        self._first_bytes = part_bytes(total_bytes, preferred)
        self._grows = total_bytes is None
        self._number = 1
        self._segments: list[memoryview] = []
        self._filled = 0

    def push(self, view: memoryview) -> list[Part]:
        """Add contiguous memory of any item type; returns the parts that it completes.

        Raises:
            ConfigError: the object needs more parts than S3 allows.
        """
        rest = view.cast("B") if view.nbytes else memoryview(b"")
        parts = []
        while rest:
            missing = self._target_bytes() - self._filled
            segment, rest = rest[:missing], rest[missing:]
            self._segments.append(segment)
            self._filled += len(segment)
            if len(segment) == missing:
                parts.append(self._take())
        return parts

    def finish(self) -> Part | None:
        """The last part, of what is left; None if nothing is."""
        return self._take() if self._segments else None

    def _target_bytes(self) -> int:
        grown = part_bytes_at(self._number, self._first_bytes)
        return grown if self._grows else self._first_bytes

    def _take(self) -> Part:
        part = Part(self._number, tuple(self._segments), self._filled)
        self._number += 1
        self._segments = []
        self._filled = 0
        return part
