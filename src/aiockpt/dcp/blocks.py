"""Where the blocks of a stored tensor begin whose CRC32s are kept: where shards of its first dimension do. Pure.

A slice is proven by whole blocks, so what it cuts of one is fetched beside it. Shards for the usual numbers of ranks,
as ``torch.chunk`` and DTensor divide rows, cut none: each bound of theirs is one of a block. Bounds follow from the
number of bytes and of rows alone, by a rule which checkpoints that stand rely on: another rule needs another form of
proof (``proof``).
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

from aiockpt.model import KiB

#: No block is larger than a 256th of its tensor, within these bounds: of tensors of 4 to 128 MiB some 400 CRC32s are
#: kept, 1.6 KB, and any 12 ranks that share one fetch less than 1/20 beside what they need. Blocks of 256 KiB make the
#: pass 2 % slower than one stretch, of 64 KiB 11 %, of 16 KiB 31 % (zlib-ng, AVX-512).
LARGEST_PART = 256
SMALLEST_AIM_BYTES = 16 * KiB
LARGEST_AIM_BYTES = 512 * KiB

#: The usual numbers of ranks: powers of two, and three times these. Five times these would be up to 30 % more blocks.
USUAL_RANKS = sorted([*(1 << power for power in range(11)), *(3 << power for power in range(9))])

#: Shards of so many of the largest blocks have bounds of their own; where all are of as many rows, shards of one have,
#: too, since these bounds are mostly those of larger shards. Shards of one for all numbers would be 40 % more blocks.
LEAST_SHARD_BLOCKS = 2


def largest_block_bytes(nbytes: int) -> int:
    """What no block of ``nbytes`` bytes is larger than."""
    return min(LARGEST_AIM_BYTES, max(SMALLEST_AIM_BYTES, nbytes // LARGEST_PART))


@lru_cache(maxsize=256)
def block_bounds(nbytes: int, rows: int) -> tuple[int, ...]:
    """Where the blocks of ``nbytes`` bytes begin, which are ``rows`` equal rows, and where the last one ends.

    Stretches between the bounds of shards are divided evenly into as few blocks as can be.
    """
    largest = largest_block_bytes(nbytes)
    rows = max(1, rows)
    cuts = {0, nbytes}
    for ranks in USUAL_RANKS:
        each = -(-rows // ranks)
        if each * nbytes >= rows * largest * (1 if rows % ranks == 0 else LEAST_SHARD_BLOCKS):
            cuts.update(row * nbytes // rows for row in range(0, rows, each))
    bounds = [0]
    for start, end in pairwise(sorted(cuts)):
        count = -(-(end - start) // largest)
        bounds += [start + (end - start) * number // count for number in range(1, count + 1)]
    return tuple(bounds)
