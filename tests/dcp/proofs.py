"""Proofs to be tested with: of any bytes, with blocks of any sizes."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from hypothesis import strategies as st

from aiockpt.dcp.proof import Proof


def proof_of(content: bytes, bounds: Sequence[int], *, row_major: bool = True) -> Proof:
    return Proof(bounds, [zlib.crc32(content[:end]) for end in bounds[1:]], row_major)


@st.composite
def bounds_of_blocks(draw: st.DrawFn, nbytes: int) -> list[int]:
    """Where blocks of so many bytes begin and end: blocks of one size, or of any."""
    if draw(st.booleans()):
        return [*range(0, nbytes, draw(st.sampled_from([4, 16, 64]))), nbytes]
    return sorted({0, nbytes, *draw(st.lists(st.integers(0, nbytes), max_size=10))})
