from __future__ import annotations

import pickle
import pickletools
import struct
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiockpt.dcp.opcodes import end_of_pickle
from aiockpt.errors import MetadataError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300) | st.binary(max_size=300),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.frozensets(st.integers()).map(set)
    | st.tuples(inner, inner) | st.binary().map(bytearray) | st.frozensets(st.text()),
    max_leaves=30,
)  # fmt: skip


@given(VALUES, st.sampled_from([2, 3, 4, 5]), st.binary(max_size=20))
def test_whatever_picklers_write_passes(value: Any, protocol: int, rest: bytes) -> None:
    data = pickle.dumps(value, protocol)
    assert end_of_pickle(data + rest) == len(data)


@pytest.mark.parametrize("protocol", [2, 4])
def test_long_ones_with_many_memos(protocol: int) -> None:
    value = [f"layers.{n}.weight" for n in range(70_000)] + ["x" * n for n in (255, 256, 65_536, 70_000)]
    value *= 2
    data = pickle.dumps(value, protocol)
    assert end_of_pickle(data) == len(data)
    assert pickle.loads(data) == value


def test_recursive_ones() -> None:
    value: list[Any] = []
    value.append((value, value))
    data = pickle.dumps(value)
    assert end_of_pickle(data) == len(data)


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
        end_of_pickle(data)


@given(st.binary(max_size=400))
def test_it_walks_as_pickletools_does(tail: bytes) -> None:
    """Whatever passes ends where the standard library's parser sees it end, and has only memo indices within bounds."""
    data = b"\x80\x04" + tail + b"N."
    try:
        end = end_of_pickle(data)
    except MetadataError:
        return
    steps = list(pickletools.genops(data))
    assert steps[-1][2] == end - 1
    assert all((arg or 0) < len(data) + (1 << 16) for op, arg, _ in steps if op.name == "LONG_BINPUT")


def test_walking_takes_no_memory() -> None:
    data = pickle.dumps([f"layers.{n}.weight" for n in range(50_000)])
    end_of_pickle(data)
    tracemalloc.start()
    try:
        end_of_pickle(data)
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()
