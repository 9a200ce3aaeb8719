from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from aiockpt.dcp import slices
from aiockpt.dcp.slices import ALONE_BYTES, MAX_STRIDE_GAP_BYTES, Stretch, byte_strides, check_slice, stretches
from aiockpt.model import KiB, MiB


@dataclass
class Slice:
    shape: tuple[int, ...]
    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    itemsize: int

    @property
    def index(self) -> tuple[slice, ...]:
        return tuple(slice(s, s + n) for s, n in zip(self.starts, self.lengths, strict=True))

    @property
    def nbytes(self) -> int:
        return math.prod(self.lengths) * self.itemsize

    def cut(self, max_dense_bytes: int | None = None, max_sparse_bytes: int = 1 << 62) -> list[Stretch]:
        return list(
            stretches(
                self.shape,
                self.starts,
                self.lengths,
                self.itemsize,
                max_dense_bytes=max_dense_bytes,
                max_sparse_bytes=max_sparse_bytes,
            )
        )


@st.composite
def any_slice(draw: st.DrawFn, max_dims: int = 4, max_side: int = 6) -> Slice:
    shape = tuple(draw(st.lists(st.integers(1, max_side), max_size=max_dims)))
    lengths = tuple(draw(st.integers(1, side)) for side in shape)
    starts = tuple(draw(st.integers(0, side - n)) for side, n in zip(shape, lengths, strict=True))
    return Slice(shape, starts, lengths, draw(st.sampled_from([1, 2, 4, 8, 16])))


def select(array: np.ndarray, stretch: Stretch, stored: bytes) -> None:
    """Copy a stretch's part from where it lies in the stored bytes into a target array, as the loader does."""
    memory = np.frombuffer(stored, dtype=np.uint8)[stretch.start : stretch.end]
    part = np.lib.stride_tricks.as_strided(
        memory[: array.itemsize].view(array.dtype), shape=stretch.shape, strides=stretch.strides
    )
    array[stretch.select] = part


bounds = st.one_of(st.none(), st.integers(1, 400))


@given(any_slice(), bounds, st.integers(1, 400))
def test_stretches_together_are_the_slice(s: Slice, max_dense: int | None, max_sparse: int) -> None:
    dtype = np.dtype(f"V{s.itemsize}")
    count = math.prod(s.shape)
    stored = np.random.default_rng(0).integers(0, 256, count * s.itemsize, dtype=np.uint8).tobytes()
    whole = np.frombuffer(stored, dtype=dtype).reshape(s.shape)
    got = np.zeros(s.lengths, dtype=dtype)

    for stretch in s.cut(max_dense, max_sparse):
        select(got, stretch, stored)

    assert got.tobytes() == np.ascontiguousarray(whole[s.index]).tobytes()


@given(any_slice(), bounds, st.integers(1, 400))
def test_every_element_is_in_one_stretch(s: Slice, max_dense: int | None, max_sparse: int) -> None:
    count = np.zeros(s.lengths, dtype=int)
    for stretch in s.cut(max_dense, max_sparse):
        count[stretch.select] += 1
        assert count[stretch.select].shape == stretch.shape
    assert (count == 1).all()


@given(any_slice(), bounds, st.integers(1, 400))
def test_stretches_ascend_and_do_not_overlap(s: Slice, max_dense: int | None, max_sparse: int) -> None:
    end = 0
    for stretch in s.cut(max_dense, max_sparse):
        assert end <= stretch.start < stretch.end
        end = stretch.end
    assert end <= math.prod(s.shape) * s.itemsize


@given(any_slice(), bounds, st.integers(1, 400))
@example(Slice((4, 6, 1, 2), (0, 0, 0, 0), (4, 1, 1, 1), 4), None, 144)  # the last row, alone, was taken for sparse
def test_bounds_are_kept_but_for_a_single_element(s: Slice, max_dense: int | None, max_sparse: int) -> None:
    for stretch in s.cut(max_dense, max_sparse):
        payload = math.prod(stretch.shape) * s.itemsize
        assert stretch.dense == (stretch.nbytes == payload)
        limit = max_dense if stretch.dense else max_sparse
        # a dense stretch may come from a sparse one that had to be cut, and then keeps that one's bound
        assert limit is None or stretch.nbytes <= limit or math.prod(stretch.shape) == 1 or max_sparse < limit


@given(any_slice())
def test_a_dense_slice_without_bound_is_one_stretch(s: Slice) -> None:
    dims = [d for d, n in enumerate(s.lengths) if n != 1]
    inner = dims[0] + 1 if dims else len(s.shape)
    if s.lengths[inner:] != s.shape[inner:]:
        return
    (stretch,) = s.cut()
    assert stretch.dense
    assert stretch.nbytes == s.nbytes


@given(any_slice())
def test_a_part_lies_in_the_target_as_torch_indexes_it(s: Slice) -> None:
    target = torch.arange(math.prod(s.lengths)).reshape(s.lengths)
    for stretch in s.cut(max_dense_bytes=16, max_sparse_bytes=16):
        assert tuple(target[stretch.select].shape) == stretch.shape
        if stretch.dense:
            assert target[stretch.select].is_contiguous()


@pytest.mark.parametrize(
    ("gap_bytes", "row_bytes", "requests"),
    [
        (MAX_STRIDE_GAP_BYTES, KiB, 1),
        (MAX_STRIDE_GAP_BYTES + 4, KiB, 8),
        (4, ALONE_BYTES - 4, 1),
        (4, ALONE_BYTES, 8),
        (0, 4 * MiB, 1),
    ],
    ids=["gap worth fetching", "gap too wide", "row too short to be alone", "row alone", "no gap"],
)
def test_which_gaps_are_fetched(gap_bytes: int, row_bytes: int, requests: int) -> None:
    s = Slice((8, (gap_bytes + row_bytes) // 4), (0, 0), (8, row_bytes // 4), 4)
    parts = s.cut()
    assert len(parts) == requests
    fetched = sum(part.nbytes for part in parts)
    assert fetched == (s.nbytes if requests > 1 or not gap_bytes else s.nbytes + 7 * gap_bytes)


def test_apart_in_the_outer_dimension_together_in_the_inner() -> None:
    inner = 256 * KiB // 4
    s = Slice((3, 16, inner), (0, 0, 0), (3, 2, inner // 2), 4)
    parts = s.cut()
    assert [part.select for part in parts] == [(0,), (1,), (2,)]
    assert all(part.shape == (2, inner // 2) and not part.dense for part in parts)


def test_a_scalar_is_one_stretch() -> None:
    (stretch,) = Slice((), (), (), 8).cut(max_dense_bytes=1, max_sparse_bytes=1)
    assert (stretch.select, stretch.start, stretch.end, stretch.dense) == ((), 0, 8, True)


@pytest.mark.parametrize(("shape", "itemsize", "expected"), [((), 4, ()), ((3,), 4, (4,)), ((2, 3, 5), 2, (30, 10, 2))])
def test_byte_strides(shape: Sequence[int], itemsize: int, expected: tuple[int, ...]) -> None:
    assert byte_strides(shape, itemsize) == expected


@pytest.mark.parametrize(
    ("starts", "lengths"),
    [((0, 0), (3, 5)), ((3, 5), (0, 0)), ((1, 2), (2, 3))],
)
def test_slices_within_the_shape_are_fine(starts: Sequence[int], lengths: Sequence[int]) -> None:
    check_slice((3, 5), starts, lengths)


@pytest.mark.parametrize(
    ("starts", "lengths"),
    [((0,), (3,)), ((0, 0), (3, 6)), ((-1, 0), (1, 1)), ((0, 0), (-1, 1)), ((3, 0), (1, 5)), ((0, 0, 0), (1, 1, 1))],
)
def test_slices_that_reach_out_are_refused(starts: Sequence[int], lengths: Sequence[int]) -> None:
    with pytest.raises(ValueError, match="slice"):
        check_slice((3, 5), starts, lengths)


def test_nobody_pays_more_than_the_gap_rule_allows() -> None:
    """Whatever the slice, what is fetched in vain is less than a gap for each row."""
    rng = np.random.default_rng(7)
    for _ in range(200):
        shape = tuple(int(n) for n in rng.integers(1, 200, 3))
        lengths = tuple(int(rng.integers(1, n + 1)) for n in shape)
        s = Slice(shape, (0, 0, 0), lengths, 8)
        parts = s.cut()
        rows = lengths[0] * lengths[1]
        assert sum(part.nbytes for part in parts) <= s.nbytes + rows * slices.MAX_STRIDE_GAP_BYTES
