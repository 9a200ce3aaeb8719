"""Blocks begin where shards do, for the usual numbers of ranks, so that resharding fetches little beside them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiockpt.crc import crc32
from aiockpt.dcp.blocks import USUAL_RANKS, block_bounds, largest_block_bytes
from aiockpt.dcp.proof import Proof
from aiockpt.model import ByteRange, GiB, KiB, MiB


@pytest.mark.parametrize(
    ("nbytes", "rows", "expected"),
    [
        (0, 0, [0]),
        (0, 5, [0]),
        (1, 1, [0, 1]),
        (16 * KiB, 16, [0, 16 * KiB]),  # one block
        (20 * KiB, 1, [0, 10 * KiB, 20 * KiB]),  # a single row, divided evenly
        (50 * KiB + 1, 1, [0, 12800, 25600, 38400, 51201]),
        (48 * KiB, 3, [0, 16 * KiB, 32 * KiB, 48 * KiB]),  # rows of one block
        (66 * KiB, 3, [0, 11 * KiB, 22 * KiB, 33 * KiB, 44 * KiB, 55 * KiB, 66 * KiB]),  # of a block and a half
        (80 * KiB, 5, [0, 16 * KiB, 32 * KiB, 48 * KiB, 64 * KiB, 80 * KiB]),
        (100 * KiB, 5, [0, 13653, 27306, 40960, 51200, 61440, 71680, 81920, 92160, 102400]),  # 3 and 2 rows; 2, 2 and 1
        (100 * KiB + 1, 7, [0, 14628, 29257, 43886, 58514, 73143, 87772, 102401]),  # no rows are like that
    ],
)
def test_bounds(nbytes: int, rows: int, expected: list[int]) -> None:
    assert list(block_bounds(nbytes, rows)) == expected


@pytest.mark.parametrize(
    ("nbytes", "rows", "count", "digest"),
    [
        (32 * MiB, 4096, 373, 0xFE973A53),
        (1664 * 6656, 1664, 383, 0x0502628F),
        (50257 * 3072, 50257, 467, 0x9C6DCB76),
        (1000 * 4004, 1000, 335, 0xD129990F),
        (GiB, 1 << 17, 3003, 0xB6EFA6B8),
    ],
)
def test_the_rule_stands_since_checkpoints_rely_on_it(nbytes: int, rows: int, count: int, digest: int) -> None:
    """Another one needs another form of proof."""
    bounds = block_bounds(nbytes, rows)
    assert len(bounds) - 1 == count
    assert crc32(b"".join(bound.to_bytes(8, "little") for bound in bounds)) == digest


@given(st.integers(0, 40 * MiB), st.integers(0, 1 << 20))
@example(40 * MiB, 1 << 62)
@example(200 * MiB, 1)
@example(4 * GiB, 50257)
def test_bounds_are_those_of_all_bytes_and_blocks_neither_large_nor_many(nbytes: int, rows: int) -> None:
    bounds = block_bounds(nbytes, rows)
    assert (bounds[0], bounds[-1]) == (0, nbytes)
    blocks = [end - start for start, end in itertools.pairwise(bounds)]
    most = largest_block_bytes(nbytes)
    assert 16 * KiB <= most <= 512 * KiB
    assert all(0 < block <= most for block in blocks)
    assert len(blocks) <= 3 * nbytes / most + 1  # of the usual shapes less than half of that


def shard(rows: int, ranks: int, rank: int) -> range:
    """The rows of one rank, as ``torch.chunk`` and DTensor divide them."""
    each = -(-rows // ranks)
    return range(min(rows, rank * each), min(rows, (rank + 1) * each))


@given(st.integers(1, 60_000), st.integers(1, 4 * KiB), st.sampled_from(USUAL_RANKS))
@example(4096, 8 * KiB, 96)
@example(50257, 3 * KiB, 128)
@example(128256, 8 * KiB, 768)
def test_shards_for_usual_numbers_of_ranks_begin_with_a_block(rows: int, row_nbytes: int, ranks: int) -> None:
    most = largest_block_bytes(rows * row_nbytes)
    is_even = rows % ranks == 0
    starts = {shard(rows, ranks, rank).start * row_nbytes for rank in range(ranks)}
    if len(shard(rows, ranks, 0)) * row_nbytes >= (most if is_even else 2 * most):
        assert starts <= set(block_bounds(rows * row_nbytes, rows))


def test_usual_numbers_of_ranks() -> None:
    assert {2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024} <= set(USUAL_RANKS)


def test_a_terabyte_costs_eight_megabytes() -> None:
    assert 4 * (len(block_bounds(1 << 40, 1 << 18)) - 1) == 8 * MiB


def reshard(rows: int, row_nbytes: int, saved: int, loaded: int) -> float:
    """Bytes fetched beside bytes needed, by all ranks together, when shards are loaded by other ranks."""
    needed = fetched_bytes = 0
    for source, target in itertools.product(range(saved), range(loaded)):
        stored, wanted = shard(rows, saved, source), shard(rows, loaded, target)
        common = range(max(stored.start, wanted.start), min(stored.stop, wanted.stop))
        if not common:
            continue
        proof = Proof(block_bounds(len(stored) * row_nbytes, len(stored)), [], row_major=True)
        span = ByteRange((common.start - stored.start) * row_nbytes, (common.stop - stored.start) * row_nbytes)
        needed += len(span)
        fetched_bytes += len(span) + sum(map(len, proof.edges([span])))
    assert needed == rows * row_nbytes
    return fetched_bytes / needed


TABLE = [
    # rows, bytes of a row, ranks that saved, ranks that load, most bytes fetched for one that is needed
    *[(rows, width, n, m, 1.0)
      for rows, width in ((4096, 8192), (11008, 8192), (14336, 16384), (128256, 8192), (1024, 2048), (32000, 8192))
      for n, m in ((1, 2), (1, 4), (1, 8), (1, 64), (2, 4), (8, 2), (8, 4), (4, 8), (8, 64), (64, 8))
      if rows * width // m >= 256 * KiB],
    *[(480, width, n, m, 1.0) for width in (960, 1920) for n, m in ((1, 2), (1, 4), (2, 4), (4, 2))],
    *[(4096, 8192, 1, m, 1.0) for m in (128, 256)],
    *[(rows, width, 1, m, 1.0)  # whether they divide the rows or not
      for rows, width in ((4096, 8192), (4096, 1024), (11008, 8192), (14336, 16384), (50257, 3072), (128256, 8192))
      for m in (3, 6, 12, 24, 48, 96)],
    *[(50257, 3072, 1, m, 1.0) for m in (2, 4, 8, 16, 32, 64, 128)],
    *[(rows, width, 1, m, 1.05)
      for rows, width in ((4096, 8192), (11008, 8192), (14336, 16384), (128256, 8192), (50257, 3072), (1024, 4096))
      for m in (5, 7, 9, 10, 11)],
    *[(rows, width, n, m, 1.05)
      for rows, width in ((4096, 8192), (4096, 1024), (128256, 8192), (50257, 3072))
      for n, m in ((1, 2), (3, 1), (2, 3), (3, 2), (8, 4), (8, 6), (6, 8), (8, 12), (8, 24), (24, 8))],
    *[(4096, 8192, n, m, 1.03) for n, m in ((8, 48), (48, 64), (64, 48), (64, 96), (96, 128))],
    *[(4096, 8192, 1, m, most) for m, most in ((40, 1.13), (56, 1.17))],
]  # fmt: skip


@pytest.mark.parametrize(("rows", "row_nbytes", "saved", "loaded", "most"), TABLE)
def test_proof_of_shards_costs_few_bytes(rows: int, row_nbytes: int, saved: int, loaded: int, most: float) -> None:
    assert reshard(rows, row_nbytes, saved, loaded) <= most
