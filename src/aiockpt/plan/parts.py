"""S3's multipart arithmetic.

One job: how large each part is. It knows nothing of how parts are made or sent. The limits are those of "Amazon S3
multipart upload limits" in the Amazon S3 User Guide: 10,000 parts, each of 5 MiB to 5 GiB except that the last may be
smaller. Their product, 48.8 TiB, is the largest object (5 TiB until December 2025).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

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

#: Where parts should be few, an upload is of as many as keep a link busy that is shared among connections: each costs
#: 0.5 ms of Python, and more where transfers empty the caches; no other thread of the process runs any meanwhile.
FEW_PARTS = 16

#: Most for a part that is larger than preferred.
LARGE_PART_BYTES = 32 * MiB

#: So many times the preferred size of copies ends a part: they take staging memory until it has been sent, and the
#: next part's are to be made meanwhile.
COPIED_TIMES = 2


class PartSizes(NamedTuple):
    """How large the parts of an object become.

    Attributes:
        at: the size of each part, numbered from 1.
        copied: a part ends sooner when so many of its bytes are copies, none of which is begun after that.
    """

    at: Callable[[int], int]
    copied: int


def check_part_size(part_size: int) -> None:
    """Refuse a part size that S3 would refuse.

    Raises:
        ConfigError: it is outside 5 MiB to 5 GiB.
    """
    if not MIN_PART_BYTES <= part_size <= MAX_PART_BYTES:
        raise ConfigError(f"part_size must lie between 5 MiB and 5 GiB, got {part_size} bytes")


def part_bytes(total_bytes: int, preferred: int) -> int:
    """The size of the parts of an object whose size is known.

    Args:
        total_bytes: that size.
        preferred: a valid part size, which is exceeded only if 10,000 such parts would not do.

    Raises:
        ConfigError: ``preferred`` is no valid part size, or the object is larger than S3 stores.
    """
    check_part_size(preferred)
    if total_bytes > MAX_OBJECT_BYTES:
        raise ConfigError(f"an object of {total_bytes} bytes is larger than S3 stores (48.8 TiB)")
    if total_bytes <= MAX_PARTS * preferred:
        return preferred
    return -(-total_bytes // (MAX_PARTS * MiB)) * MiB


def part_sizes(total_bytes: int | None, preferred: int, *, few_of: int = 0, in_turn: bool = False) -> PartSizes:
    """The sizes of the parts of an object.

    Args:
        total_bytes: the object's size; None if it is not known.
        preferred: a valid part size.
        few_of: parts are to be few, in an upload of so many bytes; see ``FEW_PARTS``.
        in_turn: copies may fill any part, and so be made and sent in turn: longer, and with fewer processors at once.

    Raises:
        ConfigError: as for ``part_bytes``.
    """
    if total_bytes is None:
        return PartSizes(partial(part_bytes_at, preferred=preferred), MAX_PART_BYTES)
    size = part_bytes(total_bytes, max(preferred, min(LARGE_PART_BYTES, few_of // FEW_PARTS)))
    most_copied = MAX_PART_BYTES if in_turn else min(MAX_PART_BYTES, COPIED_TIMES * preferred)
    return PartSizes(lambda _: size, part_bytes(total_bytes, most_copied))


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
