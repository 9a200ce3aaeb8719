from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiockpt.errors import ConfigError
from aiockpt.model import ByteRange, GiB, MiB
from aiockpt.plan.parts import (
    MAX_OBJECT_BYTES,
    MAX_PART_BYTES,
    MAX_PARTS,
    MIN_PART_BYTES,
    check_part_size,
    copy_parts,
    part_bytes,
    part_bytes_at,
    part_sizes,
)

TiB = 1024 * GiB


@pytest.mark.parametrize("size", [MIN_PART_BYTES, 8 * MiB, MAX_PART_BYTES])
def test_part_sizes_within_the_limits_pass(size: int) -> None:
    check_part_size(size)


@pytest.mark.parametrize(
    ("total", "preferred", "few_of", "size", "copied"),
    [
        (GiB, 8 * MiB, 0, 8 * MiB, 16 * MiB),
        (1, 5 * MiB, 1, 5 * MiB, 10 * MiB),
        (160 * MiB, 5 * MiB, 160 * MiB, 10 * MiB, 10 * MiB),
        (40 * MiB, 5 * MiB, 160 * MiB, 10 * MiB, 10 * MiB),
        (GiB, 8 * MiB, GiB, 32 * MiB, 16 * MiB),
        (TiB, 8 * MiB, TiB, 105 * MiB, 105 * MiB),
        (TiB, GiB, TiB, GiB, 2 * GiB),
        (TiB, 4 * GiB, TiB, 4 * GiB, MAX_PART_BYTES),
    ],
)
def test_parts_are_large_where_they_should_be_few(
    total: int, preferred: int, few_of: int, size: int, copied: int
) -> None:
    sizes = part_sizes(total, preferred, few_of=few_of)
    assert (sizes.at(1), sizes.at(MAX_PARTS), sizes.copied) == (size, size, copied)


@given(
    total=st.integers(0, MAX_OBJECT_BYTES),
    preferred=st.integers(MIN_PART_BYTES, MAX_PART_BYTES),
    others=st.integers(0, MAX_OBJECT_BYTES),
)
def test_whatever_ends_a_part_10000_do(total: int, preferred: int, others: int) -> None:
    sizes = part_sizes(total, preferred, few_of=total + others)
    least = min(sizes.at(1), sizes.copied)
    check_part_size(least)
    assert -(-total // least) <= MAX_PARTS


def test_copies_made_and_sent_in_turn_may_fill_a_part() -> None:
    assert part_sizes(GiB, 8 * MiB, few_of=GiB, in_turn=True).copied == MAX_PART_BYTES


def test_parts_of_an_object_of_unknown_size_grow() -> None:
    sizes = part_sizes(None, 8 * MiB, few_of=TiB)
    assert (sizes.at(1), sizes.at(MAX_PARTS)) == (8 * MiB, part_bytes_at(MAX_PARTS, 8 * MiB))
    assert sizes.copied == MAX_PART_BYTES


@pytest.mark.parametrize("size", [-1, 0, MIN_PART_BYTES - 1, MAX_PART_BYTES + 1])
def test_part_sizes_outside_the_limits_are_refused(size: int) -> None:
    with pytest.raises(ConfigError, match="between 5 MiB and 5 GiB"):
        check_part_size(size)
    with pytest.raises(ConfigError):
        part_bytes(1, size)


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (0, 8 * MiB),
        (10_000 * 8 * MiB, 8 * MiB),
        (10_000 * 8 * MiB + 1, 9 * MiB),
        (5 * TiB, 525 * MiB),
        (MAX_OBJECT_BYTES, MAX_PART_BYTES),
    ],
)
def test_part_bytes(total: int, expected: int) -> None:
    assert part_bytes(total, 8 * MiB) == expected


def test_an_object_larger_than_s3_stores_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"48\.8 TiB"):
        part_bytes(MAX_OBJECT_BYTES + 1, 8 * MiB)


@given(total=st.integers(0, MAX_OBJECT_BYTES), preferred=st.integers(MIN_PART_BYTES, MAX_PART_BYTES))
def test_part_bytes_fits_any_object_into_10000_valid_parts(total: int, preferred: int) -> None:
    size = part_bytes(total, preferred)
    check_part_size(size)
    assert size >= preferred
    assert -(-total // size) <= MAX_PARTS


@pytest.mark.parametrize("preferred", [MIN_PART_BYTES, 8 * MiB, GiB, MAX_PART_BYTES])
def test_growing_parts_are_valid_and_reach_5_tib(preferred: int) -> None:
    sizes = [part_bytes_at(number, preferred) for number in range(1, MAX_PARTS + 1)]
    assert sizes[0] == preferred
    assert sizes == sorted(sizes)
    assert sizes[-1] <= MAX_PART_BYTES
    assert sum(sizes) >= 5 * TiB


def test_growing_parts_stay_small_while_the_object_does() -> None:
    sizes = [part_bytes_at(number, 8 * MiB) for number in range(1, MAX_PARTS + 1)]
    assert sum(size for size in sizes if size == 8 * MiB) > 7 * GiB
    assert sum(size for size in sizes if size < 64 * MiB) > 49 * GiB


def test_there_is_no_part_10001() -> None:
    with pytest.raises(ConfigError, match="part_size"):
        part_bytes_at(MAX_PARTS + 1, 8 * MiB)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, []),
        (1, [ByteRange(0, 1)]),
        (10 * MiB, [ByteRange(0, 5 * MiB), ByteRange(5 * MiB, 10 * MiB)]),
        (5 * MiB + 1, [ByteRange(0, 5 * MiB), ByteRange(5 * MiB, 5 * MiB + 1)]),
    ],
)
def test_copy_parts(size: int, expected: list[ByteRange]) -> None:
    assert copy_parts(size, 5 * MiB) == expected


@given(size=st.integers(1, MAX_OBJECT_BYTES))
def test_copy_parts_cover_the_object(size: int) -> None:
    ranges = copy_parts(size, GiB)
    assert len(ranges) <= MAX_PARTS
    assert [r.start for r in ranges] == [0, *(r.end for r in ranges[:-1])]
    assert ranges[-1].end == size
    assert all(len(r) >= GiB for r in ranges[:-1])
