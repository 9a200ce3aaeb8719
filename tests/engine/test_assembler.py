from __future__ import annotations

import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiockpt.engine import assembler as room
from aiockpt.engine.assembler import PartAssembler
from aiockpt.engine.upload import OutgoingPart
from aiockpt.errors import ConfigError
from aiockpt.plan.parts import PartSizes


class Sink:
    """Takes parts, and keeps account of what was reserved for them."""

    def __init__(self) -> None:
        self.parts: list[OutgoingPart] = []
        self.reserved = 0
        self.released = 0

    def submit(self, part: OutgoingPart) -> None:
        self.parts.append(part)
        self.released += part.staged_bytes

    def reserve(self, nbytes: int) -> None:
        self.reserved += nbytes

    @property
    def octets(self) -> bytes:
        return b"".join(view for part in self.parts for view in part.payload.views)


def of_size(nbytes: int) -> PartSizes:
    return PartSizes(lambda _: nbytes, nbytes)


WRITES = st.lists(st.tuples(st.sampled_from(["write", "copy", "refer", "staged"]), st.integers(0, 300)), max_size=25)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "ARENA_BYTES", 64)
    monkeypatch.setattr(room, "COPY_BELOW_BYTES", 32)


@given(
    writes=WRITES,
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=4),
    copied=st.integers(1, 200) | st.just(10**6),
)
def test_parts_are_what_was_written(writes: list[tuple[str, int]], sizes: list[int], copied: int) -> None:
    sink = Sink()

    def part_bytes(number: int) -> int:
        return sizes[min(number, len(sizes)) - 1]

    made = PartAssembler(PartSizes(part_bytes, copied), sink.submit, sink.reserve)
    content = b""
    staged = 0
    for number, (how, size) in enumerate(writes):
        piece = bytes([number % 255 + 1]) * size
        if how == "write":
            made.write(piece, piece)
        elif how == "copy":
            scratch = bytearray(piece)
            made.copy_in(scratch[: size // 3], memoryview(scratch)[size // 3 :])
            scratch[:] = bytes(size)  # a copy is a copy
        else:
            reserved = 2 * size if how == "staged" else 0  # memory may be more than what is in it
            staged += reserved
            assert made.refer_to(memoryview(piece), piece, staged_bytes=reserved) == zlib.crc32(piece)
        content += piece
        assert made.tell() == len(content)
    made.finish()
    assert sink.octets == content
    assert (made.nbytes, made.crc32) == (len(content), zlib.crc32(content))
    assert [part.number for part in sink.parts] == list(range(1, len(sink.parts) + 1))
    assert sink.parts
    for part in sink.parts[:-1]:
        assert min(copied, part_bytes(part.number)) <= part.payload.nbytes <= part_bytes(part.number)
    assert sink.parts[-1].payload.nbytes <= part_bytes(len(sink.parts))
    for part in sink.parts:
        octets = b"".join(part.payload.views)
        assert (part.payload.nbytes, part.payload.crc32) == (len(octets), zlib.crc32(octets))
    assert sink.released == sink.reserved + staged


def test_large_memory_is_not_copied_and_its_owner_kept() -> None:
    sink = Sink()
    made = PartAssembler(of_size(1000), sink.submit, sink.reserve)
    memory = bytearray(2500)
    owner = object()
    made.refer_to(memoryview(memory), owner)
    made.write(memory, owner)
    made.finish()
    assert sink.reserved == 0
    for part in sink.parts:
        assert set(map(id, part.owners)) == {id(owner)}
        for view in part.payload.views:
            assert view.obj is memory


@pytest.mark.parametrize(("staged", "sizes"), [(True, [200, 200, 200]), (False, [600])])
def test_copies_end_a_part_sooner(*, staged: bool, sizes: list[int]) -> None:
    """They take memory until it has been sent, in which the next are to be made meanwhile."""
    sink = Sink()
    made = PartAssembler(PartSizes(lambda _: 1000, 150), sink.submit, sink.reserve)
    for _ in range(6):
        made.refer_to(memoryview(bytes(100)), None, staged_bytes=100 * staged)
    made.finish()
    assert [part.payload.nbytes for part in sink.parts] == sizes
    assert [part.staged_bytes for part in sink.parts] == [size * staged for size in sizes]


def test_tiny_ones_do_too_but_not_those_beside_large_memory() -> None:
    sink = Sink()
    made = PartAssembler(PartSizes(lambda _: 1000, 150), sink.submit, sink.reserve)
    for _ in range(32):
        made.copy_in(bytes(10))
    made.finish()
    assert [part.payload.nbytes for part in sink.parts] == [192, 128]  # three arenas of 64, and two
    sink = Sink()
    made = PartAssembler(PartSizes(lambda _: 1000, 150), sink.submit, sink.reserve)
    for _ in range(9):
        made.copy_in(bytes(10))
        made.refer_to(memoryview(bytes(90)), None)
    made.finish()
    assert [part.payload.nbytes for part in sink.parts] == [900]


def test_an_object_of_no_bytes_is_one_empty_part() -> None:
    sink = Sink()
    made = PartAssembler(of_size(10), sink.submit, sink.reserve)
    made.finish()
    assert [(part.number, part.payload.nbytes) for part in sink.parts] == [(1, 0)]
    assert sink.octets == b""


def test_a_full_last_part_is_not_followed_by_an_empty_one() -> None:
    sink = Sink()
    made = PartAssembler(of_size(10), sink.submit, sink.reserve)
    made.copy_in(bytes(20))
    made.finish()
    assert [part.payload.nbytes for part in sink.parts] == [10, 10]


def limited(most: int) -> Callable[[int], int]:
    def part_bytes(number: int) -> int:
        if number > most:
            raise ConfigError(f"there is no part {number}")
        return 10

    return part_bytes


@pytest.mark.parametrize("by_reference", [False, True])
def test_as_many_parts_as_there_may_be(by_reference: bool) -> None:
    """S3 takes 10,000: nobody asks how large the one behind the last would be."""
    sink = Sink()
    made = PartAssembler(PartSizes(limited(3), 10), sink.submit, sink.reserve)
    for _ in range(3):
        if by_reference:
            made.refer_to(memoryview(bytes(10)), None)
        else:
            made.copy_in(bytes(10))
    assert made.tell() == 30
    made.finish()
    assert [part.payload.nbytes for part in sink.parts] == [10, 10, 10]
    assert (made.nbytes, made.tell()) == (30, 30)


def test_one_byte_more_than_the_last_part_holds() -> None:
    sink = Sink()
    made = PartAssembler(PartSizes(limited(3), 10), sink.submit, sink.reserve)
    made.copy_in(bytes(30))
    with pytest.raises(ConfigError, match="part 4"):
        made.copy_in(b"x")
