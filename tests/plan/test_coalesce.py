from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiockpt.model import ByteRange, GiB, KiB, MiB
from aiockpt.plan.coalesce import Fetch, Piece, coalesce


def spans(fetches: list[Fetch]) -> list[tuple[int, int]]:
    return [(fetch.start, fetch.end) for fetch in fetches]


def plan(*ranges: tuple[int, int], gap: int = 0, request: int = 1000) -> list[Fetch]:
    return coalesce([ByteRange(*r) for r in ranges], max_gap_bytes=gap, max_request_bytes=request, alone_bytes=1 << 60)


@pytest.mark.parametrize(
    ("ranges", "gap", "expected"),
    [
        ([], 0, []),
        ([(5, 5)], 0, []),
        ([(0, 10)], 0, [(0, 10)]),
        ([(0, 10), (10, 20)], 0, [(0, 20)]),
        ([(10, 20), (0, 10)], 0, [(0, 20)]),
        ([(0, 10), (11, 20)], 0, [(0, 10), (11, 20)]),
        ([(0, 10), (11, 20)], 1, [(0, 20)]),
        ([(0, 10), (15, 15), (20, 30)], 9, [(0, 10), (20, 30)]),  # an empty range bridges no gap
        ([(0, 10), (0, 10)], 0, [(0, 10), (0, 10)]),
        ([(0, 10), (5, 15)], 0, [(0, 10), (5, 15)]),
        ([(0, 30), (10, 20)], 0, [(0, 30), (10, 20)]),
        # behind an overlap the later ranges follow the nearer chain, they do not alternate
        ([(0, 10), (5, 15), (15, 20), (20, 25), (25, 30)], 20, [(0, 10), (5, 30)]),
        # the same ranges twice make two chains
        ([(0, 10), (10, 20), (0, 10), (10, 20)], 0, [(0, 20), (0, 20)]),
    ],
)
def test_merging(ranges: list[tuple[int, int]], gap: int, expected: list[tuple[int, int]]) -> None:
    assert spans(plan(*ranges, gap=gap)) == expected


@pytest.mark.parametrize(
    ("ranges", "request_bytes", "expected"),
    [
        ([(0, 1000)], 1000, [(0, 1000)]),
        ([(0, 1001)], 1000, [(0, 512), (512, 1001)]),  # halves, at a cache line: no request for one byte
        ([(0, 10)], 4, [(0, 4), (4, 8), (8, 10)]),  # 64 bytes do not fit: exact thirds, rounded up
        ([(0, 700), (700, 1400)], 1000, [(0, 704), (704, 1400)]),
        # the cut at 704 lies in the gap, which nobody fetches
        ([(0, 690), (750, 1400)], 1000, [(0, 690), (750, 1400)]),
    ],
)
def test_splitting(ranges: list[tuple[int, int]], request_bytes: int, expected: list[tuple[int, int]]) -> None:
    assert spans(plan(*ranges, gap=100, request=request_bytes)) == expected


def test_pieces_name_read_offset_and_length() -> None:
    assert plan((700, 1400), (0, 690), gap=10) == [
        Fetch(0, 704, (Piece(1, 0, 690), Piece(0, 0, 4)), (0, 700)),
        Fetch(704, 1400, (Piece(0, 4, 696),), (704,)),
    ]


def test_large_requests_are_balanced() -> None:
    sizes = [f.end - f.start for f in plan((3, 3 + 5 * GiB + 1), request=16 * MiB)]
    assert len(sizes) == 5 * GiB // (16 * MiB) + 1
    assert max(sizes) <= 16 * MiB
    assert min(sizes) >= 0.95 * max(sizes)


@given(
    bounds=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 60)), max_size=25),
    gap=st.integers(0, 20),
    request=st.integers(1, 150),
)
def test_invariants(bounds: list[tuple[int, int]], gap: int, request: int) -> None:
    wanted = [ByteRange(start, start + length) for start, length in bounds]
    stored = random.Random(7).randbytes(400)
    filled = [bytearray(len(r)) for r in wanted]
    counts = [[0] * len(r) for r in wanted]

    fetches = coalesce(wanted, max_gap_bytes=gap, max_request_bytes=request, alone_bytes=1 << 60)

    assert spans(fetches) == sorted(spans(fetches), key=lambda span: span[0])
    for fetch in fetches:
        assert 0 < fetch.end - fetch.start <= request
        ends = [at + piece.length for at, piece in zip(fetch.starts, fetch.pieces, strict=True)]
        assert (fetch.start, fetch.end) == (fetch.starts[0], ends[-1])
        assert all(0 <= after - before <= gap for before, after in zip(ends, fetch.starts[1:], strict=False))
        for at, piece in zip(fetch.starts, fetch.pieces, strict=True):
            assert piece.length > 0
            assert wanted[piece.read].start + piece.offset == at
            filled[piece.read][piece.offset : piece.offset + piece.length] = stored[at : at + piece.length]
            for i in range(piece.offset, piece.offset + piece.length):
                counts[piece.read][i] += 1
    assert filled == [stored[r.start : r.end] for r in wanted]
    assert all(count == 1 for row in counts for count in row)


@given(cuts=st.sets(st.integers(1, 4999), max_size=20), request=st.integers(64, 6000))
def test_adjacent_ranges_are_requested_like_one(cuts: set[int], request: int) -> None:
    edges = [0, *sorted(cuts), 5000]
    apart = plan(*pairwise(edges), request=request)
    assert spans(apart) == spans(plan((0, 5000), request=request))


def test_no_more_requests_than_bytes_need() -> None:
    """Gaps at the cuts do not add requests."""
    ranges = [(i * 100, i * 100 + 90) for i in range(500)]
    assert len(plan(*ranges, gap=10, request=777)) <= -(-50_000 // 777)


def test_many_small_ranges_need_few_steps() -> None:
    """20,000 shuffled ranges: the plan's size is what counts; a slow planner trips the test's timeout."""
    ranges = [(i * 5 * KiB, i * 5 * KiB + 4 * KiB) for i in range(20_000)]
    random.Random(1).shuffle(ranges)
    fetches = plan(*ranges, gap=KiB, request=16 * MiB)
    assert len(fetches) == -(-20_000 * 5 * KiB // (16 * MiB))
    assert sum(len(f.pieces) for f in fetches) <= 20_000 + len(fetches)


@given(
    wanted=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 60)), max_size=30),
    gap=st.integers(0, 50),
    alone=st.integers(1, 60),
)
def test_no_gap_is_fetched_beside_a_range_that_pays_for_itself(
    wanted: list[tuple[int, int]], gap: int, alone: int
) -> None:
    ranges = [ByteRange(start, start + length) for start, length in wanted]
    for fetch in coalesce(ranges, max_gap_bytes=gap, max_request_bytes=1 << 20, alone_bytes=alone):
        for before, after, start in zip(fetch.pieces, fetch.pieces[1:], fetch.starts[1:], strict=False):
            if start > ranges[before.read].end:
                assert max(len(ranges[before.read]), len(ranges[after.read])) < alone


def test_neighbours_without_a_gap_share_a_request_whatever_their_size() -> None:
    ranges = [ByteRange(0, 700), ByteRange(700, 5000), ByteRange(5000, 5800)]
    (fetch,) = coalesce(ranges, max_gap_bytes=0, max_request_bytes=10_000, alone_bytes=1000)
    assert (fetch.start, fetch.end) == (0, 5800)
