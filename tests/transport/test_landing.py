from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiockpt.model import OnLanded
from aiockpt.transport.landing import LOOKED_AT_BYTES, Landing

SIZES = st.lists(st.integers(0, 40), max_size=8)


def memories(sizes: Sequence[int]) -> list[memoryview]:
    return [memoryview(bytearray(size)) for size in sizes]


@given(SIZES, st.data())
def test_bytes_land_in_order_whatever_arrives(sizes: list[int], data: st.DataObject) -> None:
    views = memories(sizes)
    landing = Landing(views)
    content = bytes(index % 251 + 1 for index in range(sum(sizes)))
    assert landing.total == len(content)
    while landing.remaining:
        rest = content[landing.landed :]
        if data.draw(st.booleans(), "copied"):
            taken = landing.copy_in(memoryview(rest[: data.draw(st.integers(0, 50), "arrived")]))
        else:
            buffer = landing.buffer()
            assert len(buffer)
            taken = data.draw(st.integers(1, len(buffer)), "read")
            taken = min(taken, len(rest))
            buffer[:taken] = rest[:taken]
            landing.advance(taken)
        assert landing.landed + landing.remaining == landing.total
        if taken == 0:
            continue
    assert b"".join(views) == content
    assert len(landing.buffer()) == 0


@given(SIZES, st.integers(0, 60))
def test_what_does_not_fit_is_left(sizes: list[int], surplus: int) -> None:
    landing = Landing(memories(sizes))
    data = memoryview(bytes(sum(sizes) + surplus))
    assert landing.copy_in(data) == sum(sizes)
    assert landing.copy_in(data) == 0


def test_the_buffer_is_the_memory_itself() -> None:
    memory = bytearray(10)
    landing = Landing([memoryview(memory)])
    landing.advance(4)
    assert landing.buffer().obj is memory
    landing.buffer()[0] = 7
    assert memory[4] == 7


@pytest.mark.parametrize("views", [[], [memoryview(b"")]])
def test_nothing_to_land(views: list[memoryview]) -> None:
    landing = Landing(views)
    assert landing.remaining == landing.total == len(landing.buffer()) == 0


@given(SIZES, st.lists(st.booleans(), min_size=8, max_size=8), st.integers(0, 200), st.data())
def test_who_looks_at_bytes_is_told_of_each_once_until_it_forks(
    sizes: list[int], told: list[bool], forked: int, data: st.DataObject
) -> None:
    views = memories(sizes)
    seen: dict[int, bytearray] = {number: bytearray() for number in range(len(views)) if told[number]}

    def teller(number: int) -> OnLanded:
        def tell(start: int, memory: memoryview) -> None:
            assert start == len(seen[number])
            seen[number] += memory

        return tell

    landing = Landing(views, [teller(number) if number in seen else None for number in range(len(views))])
    content = bytes(index % 251 + 1 for index in range(sum(sizes)))
    while landing.landed < min(forked, landing.total):
        size = data.draw(st.integers(1, 50), "arrived")
        landing.copy_in(memoryview(content)[landing.landed : min(forked, landing.landed + size)])
    so_far = {number: bytes(views[number][: len(bytes(views[number]).rstrip(b"\0"))]) for number in seen}
    fork = landing.fork()
    for cursor in (landing, fork):
        cursor.copy_in(memoryview(content)[cursor.landed :])
    assert b"".join(views) == content
    assert {number: bytes(memory) for number, memory in seen.items()} == so_far


def test_what_is_looked_at_is_handed_out_in_small_stretches() -> None:
    memory = memoryview(bytearray(3 * LOOKED_AT_BYTES))
    assert len(Landing([memory]).buffer()) == len(memory)
    assert len(Landing([memory], [lambda start, landed: None]).buffer()) == LOOKED_AT_BYTES


@given(SIZES, st.integers(0, 200), st.integers(0, 200))
def test_a_fork_lands_the_same_bytes_from_where_it_was_made(sizes: list[int], before: int, meanwhile: int) -> None:
    views = memories(sizes)
    landing = Landing(views)
    content = bytes(range(1, 252)) * 2
    data = memoryview(content)[: landing.total]
    landing.copy_in(data[:before])
    fork = landing.fork()
    assert (fork.landed, fork.total, fork.remaining) == (landing.landed, landing.total, landing.remaining)
    landing.copy_in(data[before : before + meanwhile])  # each goes on by itself
    fork.copy_in(data[min(before, len(data)) :])
    assert fork.remaining == 0
    assert b"".join(views) == data
