"""What has landed is compared with its proof, in whatever pieces and whichever order it came."""

from __future__ import annotations

import itertools
import zlib

from hypothesis import given
from hypothesis import strategies as st

from aiockpt.dcp.check import Check
from dcp.proofs import bounds_of_blocks, proof_of


@given(st.data())
def test_damage_in_whole_blocks_is_found_and_nothing_else(data: st.DataObject) -> None:
    nbytes = data.draw(st.integers(1, 300))
    stored = bytearray(data.draw(st.binary(min_size=nbytes, max_size=nbytes)))
    proof = proof_of(bytes(stored), data.draw(bounds_of_blocks(nbytes)))
    cuts = sorted({0, nbytes, *data.draw(st.lists(st.integers(0, nbytes), max_size=8))})
    pieces = list(itertools.pairwise(cuts))
    noted: list[tuple[int, int]] = data.draw(st.permutations(pieces))
    is_left_out: bool = data.draw(st.booleans())
    left_out = noted.pop() if is_left_out else (0, 0)
    at = data.draw(st.none() | st.integers(0, nbytes - 1))
    if at is not None:
        stored[at] ^= 1
    check = Check(proof)
    for start, end in noted:
        check.note(start, memoryview(stored)[start:end])
        if data.draw(st.booleans()):  # asked for more than once, as it is told of some bytes when they land
            check.note_rest([(start, memoryview(stored)[start:end])])
    blocks = map(proof.block, range(len(proof.running)))
    block = next((block for block in blocks if at is not None and block.start <= at < block.end), None)
    seen = block is not None and (left_out[1] <= block.start or left_out[0] >= block.end or left_out[0] == left_out[1])
    assert check.damaged() == (block if seen else None)


@given(st.data())
def test_what_nobody_noted_is_noted_at_the_end(data: st.DataObject) -> None:
    content = data.draw(st.binary(min_size=1, max_size=100))
    memory = memoryview(content)
    proof = proof_of(content, data.draw(bounds_of_blocks(len(content))))
    check = Check(data.draw(st.sampled_from([None, proof])))
    cuts = sorted({0, len(content), *data.draw(st.lists(st.integers(0, len(content)), max_size=8))})
    pieces = list(itertools.pairwise(cuts))
    for start, end in data.draw(st.lists(st.sampled_from(pieces), unique=True)):
        check.note(start, memory[start:end])
    landed = data.draw(st.permutations(pieces)) if data.draw(st.booleans()) else [(0, len(content))]
    check.note_rest([(start, memory[start:end]) for start, end in landed])
    assert check.crc32() == zlib.crc32(content)
    assert sum(end - start for start, end, _ in check._ascending()) == len(content)
    assert check.damaged() is None
