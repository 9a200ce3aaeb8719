from __future__ import annotations

import random
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiockpt.errors import ConfigError
from aiockpt.model import ByteRange, GiB, MiB
from aiockpt.plan import parts
from aiockpt.plan.parts import (
    MAX_OBJECT_BYTES,
    MAX_PART_BYTES,
    MAX_PARTS,
    MIN_PART_BYTES,
    Part,
    PartCutter,
    check_part_size,
    copy_parts,
    part_bytes,
    part_bytes_at,
)

TiB = 1024 * GiB


@pytest.mark.parametrize("size", [MIN_PART_BYTES, 8 * MiB, MAX_PART_BYTES])
def test_part_sizes_within_the_limits_pass(size: int) -> None:
    check_part_size(size)


@pytest.mark.parametrize("size", [-1, 0, MIN_PART_BYTES - 1, MAX_PART_BYTES + 1])
def test_part_sizes_outside_the_limits_are_refused(size: int) -> None:
    with pytest.raises(ConfigError, match="between 5 MiB and 5 GiB"):
        check_part_size(size)
    with pytest.raises(ConfigError):
        part_bytes(1, size)
    with pytest.raises(ConfigError):
        PartCutter(size)


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (None, 8 * MiB),
        (0, 8 * MiB),
        (10_000 * 8 * MiB, 8 * MiB),
        (10_000 * 8 * MiB + 1, 9 * MiB),
        (5 * TiB, 525 * MiB),
        (MAX_OBJECT_BYTES, MAX_PART_BYTES),
    ],
)
def test_part_bytes(total: int | None, expected: int) -> None:
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


# -- PartCutter, with part limits small enough to see


def tiny(monkeypatch: pytest.MonkeyPatch, doubling: int = 900) -> None:
    monkeypatch.setattr(parts, "MIN_PART_BYTES", 1)
    monkeypatch.setattr(parts, "PARTS_PER_DOUBLING", doubling)


def content(cut: list[Part]) -> list[bytes]:
    return [b"".join(part.segments) for part in cut]


def test_cutter_gives_parts_as_they_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(monkeypatch)
    cutter = PartCutter(4)
    assert cutter.push(memoryview(b"abc")) == []
    assert content(cutter.push(memoryview(b"defghi"))) == [b"abcd", b"efgh"]
    assert cutter.push(memoryview(b"jkl")) == [Part(3, (memoryview(b"i"), memoryview(b"jkl")), 4)]
    assert cutter.finish() is None


def test_cutter_s_last_part_may_be_small(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(monkeypatch)
    cutter = PartCutter(4)
    cutter.push(memoryview(b"abcde"))
    last = cutter.finish()
    assert last == Part(2, (memoryview(b"e"),), 1)
    assert cutter.finish() is None


def test_cutter_s_parts_grow_when_the_total_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(monkeypatch, doubling=2)
    assert [p.nbytes for p in PartCutter(1).push(memoryview(bytes(14)))] == [1, 1, 2, 2, 4, 4]


def test_cutter_s_parts_do_not_grow_when_the_total_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(monkeypatch, doubling=2)
    assert [p.nbytes for p in PartCutter(1, 5).push(memoryview(bytes(5)))] == [1] * 5


def test_cutter_sees_the_caller_s_memory_and_takes_any_items(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(monkeypatch)
    memory = array("i", [1, 2, 3])
    cutter = PartCutter(6)
    first, second = cutter.push(memoryview(memory))
    memory[0] = memory[2] = 7
    assert b"".join([*first.segments, *second.segments]) == memory.tobytes()


def test_cutter_takes_empty_views(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(monkeypatch)
    cutter = PartCutter(4)
    assert cutter.push(memoryview(b"")) == []
    assert cutter.push(memoryview(array("d"))) == []
    assert cutter.finish() is None


@given(lengths=st.lists(st.integers(0, 40), max_size=15), preferred=st.integers(1, 30), known=st.booleans())
def test_cutter_s_parts_are_what_was_pushed(lengths: list[int], preferred: int, known: bool) -> None:
    source = random.Random(3)
    pushed = [source.randbytes(length) for length in lengths]
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny(monkeypatch, doubling=3)
        cutter = PartCutter(preferred, sum(lengths) if known else None)
        cut = [part for view in pushed for part in cutter.push(memoryview(view))]
        last = cutter.finish()
    assert b"".join(content([*cut, *([last] if last else [])])) == b"".join(pushed)
    assert [part.number for part in cut] == list(range(1, len(cut) + 1))
    assert all(part.nbytes == sum(map(len, part.segments)) >= preferred for part in cut)
    assert last is None or 0 < last.nbytes == sum(map(len, last.segments))
