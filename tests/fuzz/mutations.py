"""Bytes that are nearly right: mutations of sound inputs reach deeper into a parser than random bytes do."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hypothesis import strategies as st

#: Numbers that lengths, counts and offsets are made of by those who mean harm, or by broken writers.
NUMBERS = [
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFF,
    1 << 40,
    (1 << 63) - 1,
    (1 << 64) - 1,
]


@st.composite
def mutated(draw: st.DrawFn, sound: Sequence[bytes]) -> bytes:
    """One of the sound inputs, changed in up to four places."""
    data = bytearray(draw(st.sampled_from(sound)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["flip", "set", "number", "delete", "repeat", "insert", "cut", "splice"])):
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "set" if at < len(data):
                data[at] = draw(st.integers(0, 255))
            case "number":
                size = draw(st.sampled_from([1, 2, 4, 8]))
                number = draw(st.sampled_from(NUMBERS)) % (1 << 8 * size)
                data[at : at + size] = number.to_bytes(size, draw(st.sampled_from(["little", "big"])))
            case "delete":
                del data[at : at + draw(st.integers(1, 40))]
            case "repeat":
                data[at:at] = data[at : at + draw(st.integers(1, 40))] * draw(st.integers(1, 50))
            case "insert":
                data[at:at] = draw(st.binary(max_size=10))
            case "cut":
                del data[at:]
            case "splice":
                data[at:] = draw(st.sampled_from(sound))[draw(st.integers(0, 500)) :]
    return bytes(data)


@contextmanager
def little_memory(nbytes: int) -> Iterator[None]:
    """Fails when Python objects take more than so much at a time in the block."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= nbytes, f"{peak} bytes at a time"
