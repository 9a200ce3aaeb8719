"""Damage is found whatever way bytes are loaded: on the way it is mended, at rest it is an error with a place."""

from __future__ import annotations

import io
import itertools
import logging
import pickle
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint._extension import ExtensionRegistry
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import SerializationFormat, _StorageInfo
from torch.distributed.checkpoint.planner import ReadItem, WriteItem, WriteItemType

from aiockpt.dcp.metadata import dump_metadata
from aiockpt.dcp.proof import (
    ATTRIBUTE,
    BLOCKS_OF_SMALLER,
    LARGEST_BLOCK_BYTES,
    MOST_BLOCK_BYTES,
    MOST_WHOLE_BYTES,
    Check,
    Proof,
    ProofWriter,
    attach,
    block_bytes,
    is_row_major,
    packed_whole,
)
from aiockpt.errors import ChecksumMismatch, MetadataError
from aiockpt.model import ByteRange, GiB, KiB, MiB
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from dcp.checkpoints import Place, emptied, failure, load, random_tensor, raw_bytes, same_bits, save
from dcp.stored import Stored
from dcp.test_end_to_end import Doubled
from dcp.test_load import Slices, data_gets, fetched

# ---- pure

ITEM = Stored().add("w", torch.zeros(1))


@pytest.mark.parametrize(
    ("nbytes", "rows", "expected"),
    [
        (0, 1, 16 * KiB), (256 * KiB, 64, 16 * KiB), (4 * MiB, 1024, 16 * KiB), (32 * MiB, 4096, 128 * KiB),
        (128 * MiB, 4096, 512 * KiB), (100 * GiB, 1 << 17, 512 * KiB),
        (11008 * 8192, 11008, 11008 * 8192 // 256), (1000 * 4004, 1000, 1000 * 4004 // 8 // 35),
        (50257 * 3072, 50257, 256 * KiB), (7 * MiB, 7, 16 * KiB), (225 * KiB, 240, 225 * KiB // 8 // 2),
    ],
)  # fmt: skip
def test_block_sizes(nbytes: int, rows: int, expected: int) -> None:
    assert block_bytes(nbytes, rows) == expected


@given(st.integers(1, 1 << 12), st.integers(1, 1 << 20))
def test_blocks_are_neither_small_nor_many(rows: int, row_nbytes: int) -> None:
    nbytes = rows * row_nbytes
    size = block_bytes(nbytes, rows)
    assert min(nbytes, 8 * KiB) <= size <= LARGEST_BLOCK_BYTES
    count = -(-nbytes // size)
    assert count <= 2 * max(BLOCKS_OF_SMALLER, nbytes // LARGEST_BLOCK_BYTES) + 2


def test_a_terabyte_costs_eight_megabytes() -> None:
    assert 4 * (1 << 40) // block_bytes(1 << 40, 1 << 18) == 8 * MiB


def shard(rows: int, ranks: int, rank: int) -> range:
    """The rows of one rank, as ``torch.chunk`` and DTensor divide them."""
    each = -(-rows // ranks)
    return range(min(rows, rank * each), min(rows, (rank + 1) * each))


def reshard(rows: int, row_nbytes: int, saved: int, loaded: int) -> float:
    """Bytes fetched beside bytes needed, by all ranks together, when shards are loaded by other ranks."""
    needed = fetched_bytes = 0
    for source, target in itertools.product(range(saved), range(loaded)):
        stored, wanted = shard(rows, saved, source), shard(rows, loaded, target)
        common = range(max(stored.start, wanted.start), min(stored.stop, wanted.stop))
        if not common:
            continue
        nbytes = len(stored) * row_nbytes
        size = block_bytes(nbytes, len(stored))
        proof = Proof(size, nbytes, [0] * -(-nbytes // size), row_major=True)
        span = ByteRange((common.start - stored.start) * row_nbytes, (common.stop - stored.start) * row_nbytes)
        needed += len(span)
        fetched_bytes += len(span) + sum(map(len, proof.edges([span])))
    assert needed == rows * row_nbytes
    return fetched_bytes / needed


TABLE = [
    # rows, bytes of a row, ranks that saved, ranks that load, most bytes fetched for one that is needed
    *[(rows, width, n, m, 1.0)
      for rows, width in ((4096, 8192), (11008, 8192), (14336, 16384), (128256, 8192), (1024, 2048), (32000, 8192))
      for n, m in ((1, 2), (1, 4), (1, 8), (1, 64), (2, 4), (8, 2), (8, 4), (4, 8), (8, 64), (64, 8))
      if rows * width // m >= 256 * KiB],
    *[(480, width, n, m, 1.0) for width in (960, 1920) for n, m in ((1, 2), (1, 4), (2, 4), (4, 2))],
    *[(4096, 8192, 1, m, 1.0) for m in (128, 256)],
    *[(rows, width, 1, m, 1.05)
      for rows, width in ((4096, 8192), (11008, 8192), (14336, 16384), (128256, 8192), (50257, 3072))
      for m in (3, 5, 6, 7, 9, 10, 11, 12)],
    *[(rows, width, n, m, 1.05)
      for rows, width in ((4096, 8192), (128256, 8192), (50257, 3072))
      for n, m in ((1, 2), (3, 1), (2, 3), (3, 2), (8, 4), (8, 6), (6, 8), (8, 12))],
    *[(4096, 8192, 1, m, most) for m, most in ((24, 1.1), (48, 1.2), (96, 1.4))],
]  # fmt: skip


@pytest.mark.parametrize(("rows", "row_nbytes", "saved", "loaded", "most"), TABLE)
def test_proof_of_shards_costs_few_bytes(rows: int, row_nbytes: int, saved: int, loaded: int, most: float) -> None:
    assert reshard(rows, row_nbytes, saved, loaded) <= most


@given(st.binary(max_size=1000), st.booleans())
def test_proofs_come_back(tail: bytes, row_major: bool) -> None:
    data = bytes(130 * KiB) + tail
    writer = ProofWriter(len(data))
    writer.add(memoryview(data))
    proof = Proof.unpack(writer.packed(row_major=row_major), len(data))
    assert (proof.row_major, proof.nbytes, proof.block_bytes) == (row_major, len(data), 16 * KiB)
    assert list(proof.crcs) == writer.crcs


@pytest.mark.parametrize("row_major", [True, False])
def test_proofs_of_the_first_form_are_read(row_major: bool) -> None:
    """A byte with the logarithm of the size, then the CRC32s."""
    packed = bytes([16 | (0x80 if row_major else 0)]) + b"abcdefgh"
    proof = Proof.unpack(packed, 65 * KiB)
    assert (proof.row_major, proof.nbytes, proof.block_bytes) == (row_major, 65 * KiB, 64 * KiB)
    assert list(proof.crcs) == [0x64636261, 0x68676665]


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"\x01",
        b"\x81abcd",
        b"\x01\0\0\0\0abcd",
        b"\x01\0\1\0\0abc",
        b"\x10",
        b"\x10abc",
        b"\x10abcdefgh",
        b"\x0fabcd",
        b"\x20abcd",
        b"\x15abcd",
        b"\x01" + (MOST_BLOCK_BYTES + 1).to_bytes(4, "little") + b"abcd",
        b"\xffabcd",
        7,
        "x",
    ],
)
def test_proofs_that_cannot_be(packed: Any) -> None:
    with pytest.raises(MetadataError):
        Proof.unpack(packed, 1000)


@st.composite
def spans_of_blocks(draw: st.DrawFn) -> tuple[Proof, list[ByteRange]]:
    size = draw(st.sampled_from([4, 64, 256]))
    nbytes = draw(st.integers(1, 40 * size))
    cuts = sorted(draw(st.sets(st.integers(0, nbytes), max_size=8)))
    spans = [ByteRange(start, end) for start, end in zip(cuts[::2], cuts[1::2], strict=False)]
    return Proof(size, nbytes, [0] * -(-nbytes // size), row_major=True), spans


def positions(span: ByteRange) -> range:
    return range(span.start, span.end)


@given(spans_of_blocks())
def test_edges_complete_blocks_and_nothing_else(case: tuple[Proof, list[ByteRange]]) -> None:
    proof, spans = case
    edges = proof.edges(spans)
    assert all(edge.start < edge.end for edge in edges)
    taken = sorted(itertools.chain.from_iterable(map(positions, [*spans, *edges])))
    blocks = {at // proof.block_bytes for span in spans for at in positions(span)}
    assert taken == [at for number in sorted(blocks) for at in positions(proof.block(number))]
    assert edges == sorted(edges)


@given(st.data())
def test_damage_in_whole_blocks_is_found_and_nothing_else(data: st.DataObject) -> None:
    nbytes = data.draw(st.integers(1, 300))
    stored = bytearray(data.draw(st.binary(min_size=nbytes, max_size=nbytes)))
    writer = ProofWriter(None)
    writer.block_bytes = 16
    writer.add(memoryview(stored))
    cuts = sorted({0, nbytes, *data.draw(st.lists(st.integers(0, nbytes), max_size=8))})
    pieces = list(itertools.pairwise(cuts))
    noted: list[tuple[int, int]] = data.draw(st.permutations(pieces))
    is_left_out: bool = data.draw(st.booleans())
    left_out = noted.pop() if is_left_out else (0, 0)
    at = data.draw(st.none() | st.integers(0, nbytes - 1))
    if at is not None:
        stored[at] ^= 1
    check = Check(Proof(16, nbytes, writer.crcs, row_major=True))
    for start, end in noted:
        check.note(start, memoryview(stored)[start:end])
        if data.draw(st.booleans()):  # asked for more than once, as it is told of some bytes when they land
            check.note_rest([(start, memoryview(stored)[start:end])])
    block = ByteRange(at // 16 * 16, min(at // 16 * 16 + 16, nbytes)) if at is not None else None
    seen = block is not None and (left_out[1] <= block.start or left_out[0] >= block.end or left_out[0] == left_out[1])
    assert check.damaged() == (block if seen else None)


@given(st.data())
def test_what_nobody_noted_is_noted_at_the_end(data: st.DataObject) -> None:
    content = data.draw(st.binary(min_size=1, max_size=100))
    memory = memoryview(content)
    size = data.draw(st.integers(1, 40))
    writer = ProofWriter(None)
    writer.block_bytes = size
    writer.add(memory)
    check = Check(data.draw(st.none() | st.just(Proof(size, len(content), writer.crcs, row_major=True))))
    cuts = sorted({0, len(content), *data.draw(st.lists(st.integers(0, len(content)), max_size=8))})
    pieces = list(itertools.pairwise(cuts))
    for start, end in data.draw(st.lists(st.sampled_from(pieces), unique=True)):
        check.note(start, memory[start:end])
    landed = data.draw(st.permutations(pieces)) if data.draw(st.booleans()) else [(0, len(content))]
    check.note_rest([(start, memory[start:end]) for start, end in landed])
    assert check.crc32() == zlib.crc32(content)
    assert sum(end - start for start, end, _ in check._ascending()) == len(content)
    assert check.damaged() is None


@given(st.binary(max_size=100 * KiB), st.integers(0, (1 << 32) - 1), st.booleans())
def test_what_was_packed_proves_the_whole(data: bytes, other: int, row_major: bool) -> None:
    writer = ProofWriter(len(data))
    writer.add(memoryview(data))
    packed = [writer.packed(row_major=row_major)]
    if 0 < len(data) <= MOST_WHOLE_BYTES:
        packed.append(packed_whole(zlib.crc32(data), row_major=row_major))
        assert Proof.unpack(packed[-1], len(data)).row_major == row_major
    for each in packed:
        item = ITEM._replace(crc32s=each)
        assert item.may_have(zlib.crc32(data), len(data))
        assert item.may_have(other, len(data)) == (other == zlib.crc32(data))
        whole = row_major and each == packed_whole(zlib.crc32(data))
        assert item.is_known_by(memoryview(data)) == whole
        assert not item.is_known_by(memoryview(data + b"x"))


def test_a_whole_that_is_too_large_for_its_block() -> None:
    with pytest.raises(MetadataError, match="'w'"):
        ITEM._replace(crc32s=packed_whole(0)).may_have(0, MOST_WHOLE_BYTES + 1)
    too_large = bytes(MOST_WHOLE_BYTES + 1)
    assert not ITEM._replace(crc32s=packed_whole(zlib.crc32(too_large))).is_known_by(memoryview(too_large))


def test_without_proof_anything_may_be() -> None:
    assert ITEM.may_have(0, 4)


@pytest.mark.parametrize(("packed", "expected"), [(None, None), (b"\x94abcd", True), (b"\x14abcd", False)])
def test_the_order_of_elements_is_known_without_a_request(packed: bytes | None, expected: bool | None) -> None:
    assert is_row_major(packed) is expected


def test_stock_torch_and_ours_both_keep_them() -> None:
    place = attach(_StorageInfo("x", 0, 7), b"\x90abcd")
    assert place == _StorageInfo("x", 0, 7)
    assert getattr(pickle.loads(pickle.dumps(place)), ATTRIBUTE) == b"\x90abcd"


# ---- end to end

ROWS = random_tensor((1024, 1024), torch.float32, 1)  # 4 MiB: blocks of 128 KiB, 32 rows each
WIDE = random_tensor((4, 1024 * 1024), torch.float32, 3)
SAFE: dict[str, Any] = {"serialization_format": SerializationFormat.SAFETENSORS}


class Octets(DefaultSavePlanner):
    """Objects are stored as bytes of no known form."""

    def transform_object(self, write_item: WriteItem, object: Any) -> Any:  # noqa: A002  # torch's name
        return io.BytesIO(object) if write_item.type is WriteItemType.BYTE_IO else object


class OctetsBack(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        self.original_state_dict[read_item.dest_index.fqn] = value.getvalue()


@dataclass
class Way:
    """What is saved, what is wanted of it, and into which target.

    Attributes:
        value: what is saved.
        save: arguments of the save.
        start: of the slice that is wanted; None: all.
        wanted: the slice.
        target: makes what is filled.
    """

    value: Any
    save: dict[str, Any]
    start: tuple[int, ...] | None = None
    wanted: Any = None
    target: Callable[[Any], Any] = emptied
    load_planner: type[DefaultLoadPlanner] | None = None

    def load(self, place: Place) -> Any:
        planner = Slices({"w": self.start}) if self.start is not None else None
        if self.load_planner is not None:
            planner = self.load_planner()  # type: ignore[assignment]
        reader = place.reader()
        reader.transforms.extension_registry = ExtensionRegistry()
        reader.transforms.extension_registry.register(Doubled)
        return load({"w": self.target(self.expected)}, reader, planner=planner)["w"]

    @property
    def expected(self) -> Any:
        return self.value if self.wanted is None else self.wanted


def as_double(value: torch.Tensor) -> torch.Tensor:
    return torch.zeros(value.shape, dtype=torch.float64)


def scattered(value: torch.Tensor) -> torch.Tensor:
    return torch.zeros((*value.shape, 2), dtype=value.dtype)[..., 0]


NUMBERS = torch.arange(1024.0 * 1024).reshape(1024, 1024)  # survives casts
WAYS = {
    "direct": Way(ROWS, {}),
    "direct transposed": Way(ROWS.t(), {}),
    "staged": Way(ROWS, {}, target=scattered),
    "cast": Way(NUMBERS, {}, target=as_double),
    "columns of transposed": Way(ROWS.t(), {}, (0, 480), ROWS.t()[:, 480:544].contiguous()),
    "together": Way(ROWS[:4].clone(), {}),
    "together slice": Way(ROWS[:4].clone(), {}, (1, 5), ROWS[1:3, 5:9]),
    "rows": Way(ROWS, {}, (32, 0), ROWS[32:96]),
    "rows staged": Way(ROWS, {}, (32, 0), ROWS[32:96], target=scattered),
    "rows cast": Way(NUMBERS, {}, (32, 0), NUMBERS[32:96], target=as_double),
    "columns": Way(ROWS, {}, (0, 512), ROWS[:, 512:].clone()),
    "columns apart": Way(WIDE, {}, (0, 512 * 1024), WIDE[:, 512 * 1024 :].clone()),
    "buffered": Way(random_tensor((300, 400), torch.complex64, 1).conj(), {}),
    "object": Way({"a": list(range(2000))}, {}),
    "object of no known form": Way(bytes(range(256)) * 40, {"planner": Octets()}, load_planner=OctetsBack),
    "extension": Way(ROWS[:100].clone(), {"_extensions": [Doubled()]}),
    "extension object": Way("text" * 1000, {"_extensions": [Doubled()]}),
    "safetensors": Way(ROWS, SAFE),
    "safetensors small": Way(ROWS[:2].clone(), SAFE),
    "safetensors rows": Way(ROWS, SAFE, (64, 0), ROWS[64:128]),
    "safetensors columns": Way(ROWS, SAFE, (0, 0), ROWS[:, :100].clone()),
    "safetensors cast": Way(NUMBERS, SAFE, target=as_double),
}


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor) and left.dtype != right.dtype:
        return torch.equal(left, right.to(left.dtype))
    return same_bits(left, right)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What a load has said of bytes that it could not check."""
    messages = [record.getMessage() for record in caplog.records if record.name == "aiockpt"]
    return [message for message in messages if "not checked" in message]


def place_of(local: Place) -> tuple[int, int]:
    """Where the object has the bytes of the one item."""
    (place,) = (local.reader().read_metadata().storage_data or {}).values()
    return place.offset, place.length


def wanted_byte(way: Way, stored: bytes) -> int:
    """The position of an element in the middle of what is wanted; of what is not to be found, the very middle."""
    if isinstance(way.value, torch.Tensor) and way.value.is_contiguous() and not way.value.is_conj():
        start = way.start or (0, 0)
        at = [first + size // 2 for first, size in zip(start, way.expected.shape, strict=True)]
        element = (at[0] * way.value.shape[1] + at[1]) * way.value.itemsize
        found = stored.find(raw_bytes(way.value)[element : element + 16])
        return found if found >= 0 else len(stored) // 2
    return len(stored) // 2


def mismatch_of(load_it: Callable[[], object]) -> str:
    """A load ends with bytes that do not match; what is said of them."""
    with pytest.raises(CheckpointException) as caught:
        load_it()
    error = failure(caught.value)
    assert isinstance(error, ChecksumMismatch)
    return str(error)


def test_bits_flipped_at_rest_are_an_error_that_names_tensor_object_and_bytes(
    local: Place, local_endpoint: LocalEndpoint, way: Way, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aiockpt")
    local.save({"w": way.value}, **way.save)
    assert same(way.load(local), way.expected)
    assert not said(caplog)
    key = "ckpt/__0_0.distcp"
    local_endpoint.flip_bit(local.bucket, key, wanted_byte(way, local.get(key)))
    message = mismatch_of(lambda: way.load(local))
    assert all(told in message for told in ("'w", local.uri(key), f"bytes {place_of(local)[0]}-"))


def another(value: Any) -> Any:
    """Something else of the same form."""
    if isinstance(value, torch.Tensor):
        return torch.empty_like(value).copy_(random_tensor(tuple(value.shape), value.dtype, 99))
    return value[::-1] if isinstance(value, str | bytes) else {"a": value["a"][::-1]}


@pytest.mark.parametrize("way", [way for name, way in WAYS.items() if name != "buffered"])
def test_the_objects_of_another_checkpoint_are_not_taken_for_its_own(
    local: Place, local_endpoint: LocalEndpoint, way: Way
) -> None:
    """They are sound in themselves, and lie where the metadata say: after a deletion and a save that used the names."""
    local.save({"w": way.value}, **way.save)
    local.save({"w": another(way.value)}, "another", **way.save)
    key = "ckpt/__0_0.distcp"
    before, after = local.get(key), local.get("another/__0_0.distcp")
    assert len(before) == len(after)
    local_endpoint.replace_object(local.bucket, key, after)
    message = mismatch_of(lambda: way.load(local))
    assert all(told in message for told in ("'w", local.uri(key)))


def test_a_load_in_whose_midst_the_checkpoint_is_deleted_and_saved_anew(local: Place) -> None:
    """The new one has the old one's names."""
    old, new = ({"w": torch.full((100,), value)} for value in (1.0, 2.0))

    class Slow(DefaultLoadPlanner):
        """Who is here has read the metadata."""

        def create_local_plan(self) -> Any:
            for key in local.keys("ckpt/"):
                local.client.delete_object(Bucket=local.bucket, Key=key)
            local.save(new)
            return super().create_local_plan()

    local.save(old)
    mismatch_of(lambda: local.load(emptied(old), planner=Slow()))
    assert same_bits(local.load(emptied(new)), new)


def test_bits_flipped_on_the_way_are_mended(local: Place, local_endpoint: LocalEndpoint, way: Way) -> None:
    """In each request of the load in turn, near the beginning and near the end of its answer."""
    local.save({"w": way.value}, **way.save)
    local_endpoint.reset_stats()
    way.load(local)
    requests = data_gets(local_endpoint)
    shortest = min(record.body_bytes_out for record in requests)
    for number in range(min(len(requests), 6)):
        for at in (3, shortest - 40):
            local_endpoint.clear_faults()
            flip = Fault(FaultKind.FLIP_BIT, operation="GetObject", key=".distcp", skip=number, after_bytes=at)
            local_endpoint.add_fault(flip)
            assert same(way.load(local), way.expected), (number, at)


@pytest.mark.parametrize("form", SerializationFormat)
def test_proof_costs_no_request_and_few_bytes(
    local: Place, local_endpoint: LocalEndpoint, form: SerializationFormat
) -> None:
    state = {"w": random_tensor((1000, 1001), torch.float32, 1)}
    local.save(state, serialization_format=form)
    local_endpoint.reset_stats()
    part = state["w"][101:731]  # begins and ends within blocks
    target = {"w": torch.zeros(part.shape)}
    assert same_bits(local.load(target, planner=Slices({"w": (101, 0)})), {"w": part})
    with_proof = fetched(local_endpoint), len(data_gets(local_endpoint))

    metadata = local.reader().read_metadata()
    for place in (metadata.storage_data or {}).values():
        delattr(place, ATTRIBUTE)
    local.put("ckpt/.metadata", dump_metadata(metadata))
    local_endpoint.reset_stats()
    assert same_bits(local.load(target, planner=Slices({"w": (101, 0)})), {"w": part})
    without = fetched(local_endpoint), len(data_gets(local_endpoint))
    assert with_proof[1] == without[1]
    assert without[0] < with_proof[0] <= without[0] + 2 * block_bytes(1000 * 4004, 1000)


@pytest.mark.parametrize("form", SerializationFormat)
def test_shards_are_proven_to_their_first_and_last_bit(
    local: Place, local_endpoint: LocalEndpoint, form: SerializationFormat
) -> None:
    """An eighth of rows that no power of two of bytes divides; nothing is fetched beside it."""
    whole = random_tensor((344, 2001), torch.float32, 5)
    local.save({"w": whole}, serialization_format=form)
    part = whole[129:172]
    target = {"w": torch.zeros_like(part)}
    local_endpoint.reset_stats()
    assert same_bits(local.load(target, planner=Slices({"w": (129, 0)})), {"w": part})
    assert fetched(local_endpoint) <= 1.05 * part.nbytes + (64 * KiB if form is SerializationFormat.SAFETENSORS else 0)
    key = "ckpt/__0_0.distcp"
    start = local.get(key).index(raw_bytes(part[0]))
    for at in (start, start + part.nbytes - 1):
        local_endpoint.flip_bit(local.bucket, key, at)
        mismatch_of(lambda: local.load(target, planner=Slices({"w": (129, 0)})))
        local_endpoint.flip_bit(local.bucket, key, at)


SLICES: dict[str, tuple[torch.Tensor, tuple[int, int], tuple[int, int]]] = {
    "rows": (ROWS, (3, 0), (5, 1024)),
    "a row": (ROWS, (1001, 0), (1, 1024)),
    "a row of the last block": (ROWS, (1023, 0), (1, 1024)),
    "part of a row": (ROWS, (7, 5), (1, 17)),
    "columns": (ROWS, (3, 5), (400, 17)),
    "rows far apart": (WIDE, (1, 77), (3, 300_001)),
    "long rows": (WIDE, (1, 77), (2, 700_001)),
    "of a small tensor": (ROWS[:50], (31, 0), (7, 1024)),
}


@pytest.mark.parametrize("form", SerializationFormat)
@pytest.mark.parametrize("target", [emptied, scattered, as_double])
@pytest.mark.parametrize("name", SLICES)
def test_no_bit_of_a_slice_goes_unproven(
    local: Place,
    local_endpoint: LocalEndpoint,
    name: str,
    form: SerializationFormat,
    target: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """Wherever it begins and ends, whatever its target: its first and last bits, and those of each of its rows."""
    stored, (top, left), (rows, columns) = SLICES[name]
    if target is as_double:
        stored = torch.arange(float(stored.numel())).reshape(stored.shape)  # survives casts
    local.save({"w": stored.clone()}, serialization_format=form)
    part = stored[top : top + rows, left : left + columns].contiguous()
    planner = Slices({"w": (top, left)})
    assert same(local.load({"w": target(part)}, planner=planner)["w"], part)
    key = "ckpt/__0_0.distcp"
    start = local.get(key).index(raw_bytes(stored))
    for row in {top, top + rows // 2, top + rows - 1}:
        at = start + (row * stored.shape[1] + left) * stored.itemsize
        for byte in (at, at + columns * stored.itemsize - 1):
            local_endpoint.flip_bit(local.bucket, key, byte)
            mismatch_of(lambda: local.load({"w": target(part)}, planner=Slices({"w": (top, left)})))
            local_endpoint.flip_bit(local.bucket, key, byte)


@pytest.mark.parametrize("form", SerializationFormat)
def test_reports_tell_what_had_no_proof(local: Place, tmp_path: Path, form: SerializationFormat) -> None:
    state = {"w": random_tensor((1000, 1001), torch.float32, 1), "v": torch.ones(300, 300), "n": torch.zeros(3)}
    save(state, dcp.FileSystemWriter(tmp_path, serialization_format=form))
    local.sync_up(tmp_path, "ckpt")
    reader = local.reader()
    load(emptied(state), reader)
    part = local.reader()
    load({"w": torch.zeros(100, 1001)}, part, planner=Slices({"w": (50, 0)}))
    assert reader.report is not None
    assert part.report is not None
    whole = sum(tensor.nbytes for tensor in state.values()) if form is SerializationFormat.SAFETENSORS else 0
    assert (reader.report.unproven_bytes, part.report.unproven_bytes) == (whole, 100 * 1001 * 4)


@pytest.mark.parametrize("form", SerializationFormat)
def test_checkpoints_without_proof_load_and_say_so_once(
    local: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture, form: SerializationFormat
) -> None:
    caplog.set_level(logging.INFO, "aiockpt")
    whole = random_tensor((1000, 1001), torch.float32, 1)
    state = {"w": whole, "v": torch.ones(300, 300), "n": 7}
    save(state, dcp.FileSystemWriter(tmp_path, serialization_format=form))
    local.sync_up(tmp_path, "ckpt")
    reader = local.reader()
    for _ in range(2):
        part = {"w": torch.zeros(100, 1001)}
        load(part, reader, planner=Slices({"w": (50, 0)}))
        assert same_bits(part["w"], whole[50:150])
    (message,) = said(caplog)
    assert local.uri("ckpt") in message
    assert "'w'" in message


def test_with_checksums_off_nobody_compares(local: Place, local_endpoint: LocalEndpoint) -> None:
    local.save({"w": ROWS}, **SAFE)
    local_endpoint.flip_bit(local.bucket, "ckpt/__0_0.distcp", 10_000)
    assert not same_bits(local.load({"w": torch.zeros_like(ROWS)}, checksum="off")["w"], ROWS)


def test_a_proof_of_another_tensor_is_refused(local: Place) -> None:
    local.save({"w": ROWS})
    metadata = local.reader().read_metadata()
    (place,) = (metadata.storage_data or {}).values()
    setattr(place, ATTRIBUTE, getattr(place, ATTRIBUTE)[:-4])
    local.put("ckpt/.metadata", dump_metadata(metadata))
    with pytest.raises(CheckpointException) as caught:
        local.load({"w": torch.zeros_like(ROWS)})
    error = failure(caught.value)
    assert isinstance(error, MetadataError)
    assert "'w'" in str(error)


def test_many_small_tensors_cost_little_metadata(local: Place) -> None:
    local.save({f"w{n}": torch.full((10, 10), float(n)) for n in range(20)} | {"empty": torch.zeros(0)})
    metadata = local.reader().read_metadata()
    places = metadata.storage_data or {}
    noted = {index.fqn: getattr(place, ATTRIBUTE, b"") for index, place in places.items()}
    assert noted.pop("empty") == b""
    assert {len(packed) for packed in noted.values()} == {5}
    with_proof = len(dump_metadata(metadata))
    for place in places.values():
        vars(place).pop(ATTRIBUTE, None)
    assert with_proof - len(dump_metadata(metadata)) < 20 * 16
