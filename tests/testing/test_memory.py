from __future__ import annotations

import os
import random
import zlib

from aiockpt.testing.memory import BLOCK_BYTES, SMALL_BYTES, BlockPool, Landing


def land(data: bytes, pool: BlockPool, step: int) -> Landing:
    landing = Landing(len(data), pool)
    while landing.received < landing.size:
        room = landing.room(step)
        room[:] = data[landing.received : landing.received + len(room)]
        landing.advance(len(room))
    return landing


def test_a_body_lands_over_several_blocks() -> None:
    data = random.Random(1).randbytes(2 * BLOCK_BYTES + SMALL_BYTES // 2)
    content = land(data, BlockPool(), 300_001).content()
    assert content.to_bytes() == data
    assert content.crc32 == zlib.crc32(data)
    assert len(content.pieces) == 3


def test_an_empty_body_needs_no_memory() -> None:
    content = Landing(0, BlockPool()).content()
    assert (content.pieces, content.size, content.crc32) == ((), 0, 0)


def test_a_block_is_used_again_only_when_nobody_looks_at_it() -> None:
    pool = BlockPool()
    data = os.urandom(BLOCK_BYTES)
    content = land(data, pool, BLOCK_BYTES).content()
    view = content.pieces[0][100:200]
    del content
    other = pool.take()
    other[:] = bytes(BLOCK_BYTES)
    assert view == data[100:200]
    del view
    again = pool.take()
    assert again[:] == data


def test_reserved_blocks_are_handed_out_first() -> None:
    pool = BlockPool(reserve_bytes=BLOCK_BYTES + 1)
    assert len({id(block) for block in (pool.take(), pool.take())}) <= 2
    assert not pool._retired
