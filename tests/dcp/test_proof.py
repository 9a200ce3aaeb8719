"""Damage is found whatever way bytes are loaded: on the way it is mended, at rest it is an error with a place."""

from __future__ import annotations

import io
import itertools
import logging
import pickle
import random
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

from aiockpt.dcp import proof as proofs
from aiockpt.dcp.blocks import block_bounds, largest_block_bytes
from aiockpt.dcp.metadata import dump_metadata
from aiockpt.dcp.proof import (
    ATTRIBUTE,
    MOST_BLOCK_BYTES,
    MOST_WHOLE_BYTES,
    KnownProof,
    Proof,
    ProofWriter,
    attach,
    form_of,
    is_row_major,
    packed_whole,
)
from aiockpt.errors import ChecksumMismatch, MetadataError
from aiockpt.model import ByteRange, KiB, MiB
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from dcp.checkpoints import Place, emptied, failure, load, random_tensor, raw_bytes, same_bits, save
from dcp.proofs import bounds_of_blocks, proof_of
from dcp.stored import Stored
from dcp.test_end_to_end import Doubled
from dcp.test_load import Slices, data_gets, fetched

# ---- pure

ITEM = Stored().add("w", torch.zeros(1))


def unpacked(packed: bytes, nbytes: int) -> Proof:
    proof = Proof.unpack(packed, nbytes)
    return Proof(list(proof.bounds), list(proof.running), proof.row_major)


@given(st.binary(max_size=1000), st.integers(0, 300), st.booleans())
def test_proofs_come_back(tail: bytes, rows: int, row_major: bool) -> None:
    data = bytes(130 * KiB) + tail
    writer = ProofWriter(len(data), (rows,))
    writer.add(memoryview(data))
    expected = proof_of(data, list(block_bounds(len(data), rows)), row_major=row_major)
    assert unpacked(writer.packed(row_major=row_major), len(data)) == expected


def test_how_a_tensors_proof_is_packed() -> None:
    """A byte of form, the number of rows, and running CRC32s."""
    data = random.Random(0).randbytes(48 * KiB)
    writer = ProofWriter(len(data), (3,))
    writer.add(memoryview(data))
    running = b"".join(zlib.crc32(data[: row * 16 * KiB]).to_bytes(4, "little") for row in (1, 2, 3))
    assert writer.packed() == b"\x82\3\0\0\0\0\0\0\0" + running
    assert writer.packed(row_major=False) == b"\2\3\0\0\0\0\0\0\0" + running


def test_how_the_proof_of_what_nobody_slices_is_packed() -> None:
    """A byte of form, the size of blocks, and the CRC32 of each."""
    data = random.Random(0).randbytes(600 * KiB)
    writer = ProofWriter(None)
    writer.add(memoryview(data)[:1000])
    writer.add(memoryview(data)[1000:])
    blocks = [data[: 512 * KiB], data[512 * KiB :]]
    assert writer.packed() == b"\x81\0\0\x08\0" + b"".join(zlib.crc32(each).to_bytes(4, "little") for each in blocks)
    assert unpacked(writer.packed(), len(data)) == proof_of(data, [0, 512 * KiB, 600 * KiB])


#: Forms that are read, and not written for tensors of this size: a byte, and what follows it.
OLDER_FORMS = {
    "the logarithm of the size": b"\x90",
    "the same, of a transposed tensor": b"\x10",
    "the size": b"\x81\0\0\1\0",
    "the same of a transposed one": b"\x01\0\0\1\0",
}


@pytest.mark.parametrize("form", OLDER_FORMS)
def test_proofs_of_older_forms_are_read(form: str) -> None:
    header = OLDER_FORMS[form]
    data = random.Random(0).randbytes(65 * KiB)
    packed = header + b"".join(zlib.crc32(each).to_bytes(4, "little") for each in (data[: 64 * KiB], data[64 * KiB :]))
    expected = proof_of(data, [0, 64 * KiB, 65 * KiB], row_major=header[0] >= 0x80)
    assert unpacked(packed, len(data)) == expected


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
        b"\x02",
        b"\x02\1\0\0",
        b"\x02\1\0\0\0\0\0\0\0",
        b"\x82\1\0\0\0\0\0\0\0abc",
        b"\x82\1\0\0\0\0\0\0\0abcdefgh",
        b"\x82" + (1001).to_bytes(8, "little") + b"abcd",  # more rows than bytes
        b"\x82" + b"\xff" * 8 + b"abcd",
        7,
        "x",
    ],
)
def test_proofs_that_cannot_be(packed: Any) -> None:
    assert Proof.unpack(b"\x82" + (1000).to_bytes(8, "little") + b"abcd", 1000).crc32() == 0x64636261
    with pytest.raises(MetadataError):
        Proof.unpack(packed, 1000)


@pytest.mark.parametrize("form", ["\x82\1\0\0\0\0\0\0\0", "\x82\0\0\0\0\1\0\0\0", "\x81\0\0\x08\0", "\x90"])
@pytest.mark.parametrize("nbytes", [-1, -(1 << 40), 20 * MiB, 1 << 40, 1 << 62, 1 << 80])
def test_no_bounds_are_made_of_which_there_cannot_be_so_many(
    form: str, nbytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metadata may say that anything is stored: that takes no more time and memory than there are CRC32s."""
    monkeypatch.setattr(proofs, "block_bounds", lambda nbytes, rows: pytest.fail(f"for {nbytes} in {rows}"))
    with pytest.raises(MetadataError):
        Proof.unpack(form.encode("latin-1") + b"abcd" * 10, nbytes)


@pytest.mark.parametrize("packed", [b"\x81\0\0\x08\0", b"\x82\5\0\0\0\0\0\0\0", b"\x82\0\0\0\0\0\0\0\0"])
def test_the_proof_of_nothing(packed: bytes) -> None:
    with pytest.raises(MetadataError):
        Proof.unpack(packed, -1)
    assert Proof.unpack(packed, 0).crc32() == 0
    assert not Proof.unpack(packed, 0).edges([])
    assert ProofWriter(0, (5, 0)).packed() == b"\x82\5\0\0\0\0\0\0\0"


def test_forms_can_be_compared_only_with_their_own() -> None:
    forms = [form_of(packed + b"abcdefgh") for packed in (b"\x90", b"\x10", b"\x81\0\0\1\0", b"\x82\5" + bytes(7))]
    assert forms == [b"\x90", b"\x10", b"\x81\0\0\1\0", b"\x82\5" + bytes(7)]
    assert form_of(b"\x33abcd") == b"\x33abcd"  # of no known form


@st.composite
def spans_of_blocks(draw: st.DrawFn) -> tuple[Proof, list[ByteRange]]:
    nbytes = draw(st.integers(1, 2000))
    bounds = draw(bounds_of_blocks(nbytes))
    cuts = sorted(draw(st.sets(st.integers(0, nbytes) | st.sampled_from(bounds), max_size=8)))
    spans = [ByteRange(start, end) for start, end in zip(cuts[::2], cuts[1::2], strict=False)]
    return Proof(bounds, [], row_major=True), spans


def positions(span: ByteRange) -> range:
    return range(span.start, span.end)


@given(spans_of_blocks())
def test_edges_complete_blocks_and_nothing_else(case: tuple[Proof, list[ByteRange]]) -> None:
    proof, spans = case
    edges = proof.edges(spans)
    assert all(edge.start < edge.end for edge in edges)
    taken = sorted(itertools.chain.from_iterable(map(positions, [*spans, *edges])))
    blocks = [proof.block(number) for number in range(len(proof.bounds) - 1)]
    touched = [block for block in blocks if any(block.start < span.end and span.start < block.end for span in spans)]
    assert taken == [at for block in touched for at in positions(block)]
    assert edges == sorted(edges)


@given(st.integers(1, 400), st.data())
def test_a_known_proof_is_what_it_was(rows: int, data: st.DataObject) -> None:
    """Whatever views the bytes come in once more, and whatever there is now where blocks are whole."""
    content = random.Random(rows).randbytes(rows * 500)
    taken = ProofWriter(len(content), (rows,))
    taken.add(memoryview(content))
    known = KnownProof(taken)
    cuts = sorted([0, len(content), *data.draw(st.lists(st.integers(0, len(content)), max_size=5))])
    for start, end in itertools.pairwise(cuts):
        assert known.add(memoryview(content)[start:end]) == zlib.crc32(content[start:end])
    assert known.packed() == taken.packed()
    assert KnownProof(taken).add(memoryview(bytes(len(content)))) == zlib.crc32(content)


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
    assert without[0] < with_proof[0] <= without[0] + 2 * largest_block_bytes(1000 * 4004)


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


@pytest.mark.parametrize("ranks", [24, 48, 96])
def test_shards_that_do_not_divide_the_rows_cost_little_beside_them(
    local: Place, local_endpoint: LocalEndpoint, ranks: int
) -> None:
    """As ``torch.chunk`` and FSDP2 shard 32 MiB; loaded rank by rank, each bit as it was."""
    whole = random_tensor((4096, 2048), torch.float32, 5)
    local.save({"w": whole})
    local_endpoint.reset_stats()
    start = 0
    for part in torch.chunk(whole, ranks):
        target = {"w": torch.zeros_like(part)}
        assert same_bits(local.load(target, planner=Slices({"w": (start, 0)})), {"w": part})
        start += len(part)
    assert start == len(whole)
    assert fetched(local_endpoint) <= 1.05 * whole.nbytes


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
