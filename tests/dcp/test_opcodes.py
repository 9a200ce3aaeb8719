from __future__ import annotations

import io
import pickle
import pickletools
import struct
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aiockpt.dcp.opcodes import _MAX_WIDE_INTS, looked_through
from aiockpt.errors import MetadataError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=300)
    | st.binary(max_size=300),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.frozensets(st.integers()).map(set)
    | st.tuples(inner, inner) | st.binary().map(bytearray) | st.frozensets(st.text()),
    max_leaves=30,
)  # fmt: skip


def end_of(data: bytes) -> int:
    return looked_through(data).end


class Watching(pickle.Unpickler):
    """Notes what it is shown."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.shown: list[Any] = []

    def persistent_load(self, made: Any) -> Any:
        self.shown.append(made)
        return made


def within(value: Any) -> Iterator[Any]:
    """All tuples and frozensets in a value."""
    if isinstance(value, tuple | frozenset):
        yield value
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | set | tuple | frozenset):
        for part in value:
            yield from within(part)


@given(VALUES, st.sampled_from([2, 3, 4, 5]))
def test_what_is_shown_are_tuples_and_frozensets_and_the_value_stays(value: Any, protocol: int) -> None:
    unpickler = Watching(looked_through(pickle.dumps(value, protocol)).shown)
    assert unpickler.load() == value
    for made in within(value):
        is_of_numbers = len(made) <= 3 and all(type(part) is int for part in made)
        is_by_name = protocol < 4 and isinstance(made, frozenset)
        assert is_of_numbers or is_by_name or made in unpickler.shown


@pytest.mark.parametrize("protocol", [2, 4])
def test_of_sizes_nothing_is_shown(protocol: int) -> None:
    value = [torch.Size(shape) for shape in ((1,), (2, 300), (3, 70_000, 1))]
    unpickler = Watching(looked_through(pickle.dumps(value, protocol)).shown)
    assert unpickler.load() == value
    assert unpickler.shown == []


@pytest.mark.parametrize("count", [3, 4, 70])
@pytest.mark.parametrize("behind", [b"", b"\x94\x85\x94R"])
def test_numbers_beside_something_from_the_memo_do_not_hide_it(count: int, behind: bytes) -> None:
    """``behind`` looks like what makes a size."""
    gets = b"N\x94" + b"(h\x00" + b"K\x01" * count + b"t" + behind
    data = looked_through(b"\x80\x04" + gets + b".").shown
    assert b"tQ" in data


def test_the_same_hash_is_not_for_any_number_of_ints() -> None:
    def same(count: int) -> bytes:
        return pickle.dumps([n * (2**61 - 1) for n in range(8, 8 + count)])

    assert end_of(same(_MAX_WIDE_INTS))
    with pytest.raises(MetadataError, match="ints"):
        end_of(same(_MAX_WIDE_INTS + 1))


@given(st.lists(st.integers(-(2**55), 2**55 - 1)))
def test_offsets_of_any_object_are_ordinary_ints(values: list[int]) -> None:
    data = pickle.dumps(values * 100)
    assert end_of(data) == len(data)


@given(VALUES, st.sampled_from([2, 3, 4, 5]), st.binary(max_size=20))
def test_whatever_picklers_write_passes(value: Any, protocol: int, rest: bytes) -> None:
    data = pickle.dumps(value, protocol)
    assert end_of(data + rest) == len(data)


@pytest.mark.parametrize("protocol", [2, 4])
def test_long_ones_with_many_memos(protocol: int) -> None:
    value = [f"layers.{n}.weight" for n in range(70_000)] + ["x" * n for n in (255, 256, 65_536, 70_000)]
    value *= 2
    data = pickle.dumps(value, protocol)
    assert end_of(data) == len(data)
    assert pickle.loads(data) == value


def test_recursive_ones() -> None:
    value: list[Any] = []
    value.append((value, value))
    data = pickle.dumps(value)
    assert end_of(data) == len(data)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x80\x02Nr\xff\xff\xff\x7f.", id="memo of 16 GiB"),
        pytest.param(b"\x80\x02Nr\x00\x00\x01\x00.", id="memo of 512 KiB for 9 bytes"),
        pytest.param(b"\x80\x04B\xff\xff\xff\x7f.", id="bytes"),
        pytest.param(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b".", id="long bytes"),
        pytest.param(b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".", id="bytearray"),
        pytest.param(b"\x80\x04\x8d" + struct.pack("<Q", (1 << 64) - 1) + b".", id="text"),
        pytest.param(b"\x80\x04X\xff\xff\xff\x7f.", id="short text"),
        pytest.param(b"\x80\x04\x8b\xff\xff\xff\x7f.", id="int"),
        pytest.param(b"\x80\x04]" + b"2\x86" * 60 + b".", id="doubling"),
        pytest.param(b"(lp0\n.", id="protocol 0"),
        pytest.param(b"I" + b"9" * 10_000 + b"\n.", id="decimal"),
        pytest.param(b"\x80\x04(i__main__\nX\n.", id="instance"),
        pytest.param(b"\x80\x04P1\n.", id="persistent"),
        pytest.param(b"\x80\x05\x97.", id="buffer"),
        pytest.param(b"\x80\x04\x82\x01.", id="extension"),
        pytest.param(b"cos\nsystem", id="half a name"),
        pytest.param(b"\x80\x04N", id="no end"),
        pytest.param(b"\x80\x04X\x01", id="half a length"),
        pytest.param(b"\xff", id="no opcode"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_what_would_take_memory_or_no_pickler_writes_is_refused(data: bytes) -> None:
    with pytest.raises(MetadataError):
        end_of(data)


@given(st.binary(max_size=400))
def test_it_walks_as_pickletools_does(tail: bytes) -> None:
    """Whatever passes ends where the standard library's parser sees it end, and has only memo indices within bounds."""
    data = b"\x80\x04" + tail + b"N."
    try:
        end = end_of(data)
    except MetadataError:
        return
    steps = list(pickletools.genops(data))
    assert steps[-1][2] == end - 1
    assert all((arg or 0) < len(data) + (1 << 16) for op, arg, _ in steps if op.name == "LONG_BINPUT")


def test_looking_takes_a_few_times_the_length() -> None:
    data = pickle.dumps([(f"layers.{n}.weight",) for n in range(50_000)])
    end_of(data)
    tracemalloc.start()
    try:
        end_of(data)
        assert tracemalloc.get_traced_memory()[1] < 12 * len(data)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("token", [b"C\x00", b"N", b"h\x00", b"\x8c\x00", b"c\n\n", b"\x95" + bytes(8), b")\x85"])
def test_steps_grow_with_the_length_and_not_with_its_square(token: bytes) -> None:
    """100,000 of each; by the square they would take minutes, and the suite's limit ends that."""
    data = b"\x80\x04" + token * 100_000
    assert end_of(data + b".") == len(data) + 1
    with pytest.raises(MetadataError):
        end_of(data)
