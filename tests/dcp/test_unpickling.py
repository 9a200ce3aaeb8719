"""Short pickles that would be endless work. What is refused by name is tested in ``test_metadata``."""

from __future__ import annotations

import pickle
import struct
import tracemalloc
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from aiockpt.dcp.metadata import dump_metadata, load_metadata
from aiockpt.dcp.unpickling import _MAX_WEIGHT, SafeUnpickler
from aiockpt.errors import MetadataError

DCP = "torch.distributed.checkpoint.metadata"
LEVELS = 60


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"


def get(number: int) -> bytes:
    return b"j" + struct.pack("<I", number)


def tower(first: bytes, step: bytes, levels: int = LEVELS) -> bytes:
    """``first``, and upon it levels that have the one below where ``step`` says ``%b``; each is memoized."""
    return first + b"\x94" + b"".join(step.replace(b"%b", get(n)) + b"\x94" for n in range(levels))


def as_key(value: bytes) -> bytes:
    return b"\x80\x04}(" + value + b"Nu."


PAIRS = tower(b")", b"%b%b\x86")
INDEX = name(DCP, "MetadataIndex") + b")\x81}(" + text("fqn") + b"%b" + text("offset") + b"%bub"
FROZEN = tower(b")", b"(%b%b\x85\x91")
PATHS = name("pathlib", "PurePosixPath")
DEEP = b")" + b"\x85" * 200_000

ENDLESS = {
    "pairs as a key": as_key(PAIRS),
    "pairs with numbers": as_key(tower(b"(K\x01K\x02K\x03t", b"(K\x01%b%bK\x02t")),
    "pairs with one below and one from the memo": as_key(b"N\x94" + b"".join(get(n) + b"\x86\x94" for n in range(60))),
    "pairs in a set": b"\x80\x04\x8f(" + PAIRS + b"\x90.",
    "pairs in a frozenset": b"\x80\x04(" + PAIRS + b"\x91.",
    "pairs given to set": b"\x80\x04" + name("builtins", "set") + b"](" + PAIRS + b"e\x85R.",
    "pairs given to OrderedDict": b"\x80\x04" + name("collections", "OrderedDict") + b"]((" + PAIRS + b"Nte\x85R.",
    "pairs as a layout": b"\x80\x04" + name("torch.serialization", "_get_layout") + PAIRS + b"\x85R.",
    "pairs as an encoding": b"\x80\x04" + name("_codecs", "encode") + text("x") + PAIRS + b"\x86R.",
    "pairs as attributes": b"\x80\x04" + name(DCP, "Metadata") + b")\x81}(" + PAIRS + b"Nub.",
    "indices of indices": as_key(tower(text("x"), INDEX)),
    "frozensets, twice": b"\x80\x04\x8f(" + FROZEN + FROZEN + b"\x90.",
    "frozensets of old protocols": as_key(tower(b")", name("builtins", "frozenset") + b"](%b%b\x85e\x85R")),
    "slices of slices": as_key(tower(b"N", name("builtins", "slice") + b"%b%b%b\x87R")),
    "paths of paths": b"\x80\x04" + tower(PATHS + text("x") + b"\x85R", PATHS + b"%b%b\x86R") + b".",
    "deep tuples": as_key(DEEP),
    "deep tuples from the memo": as_key(tower(b")", b"%b\x85", 5000)),
    "long tuple again and again": b"\x80\x04((" + b"K\x01" * 10_000 + b"t\x94}(" + (get(0) + b"N") * 10_000 + b"ut.",
}  # fmt: skip


@pytest.mark.parametrize("data", ENDLESS.values(), ids=ENDLESS)
def test_what_would_take_for_ever_is_refused(data: bytes) -> None:
    """Each would take years, or overflow the stack: that this test ends is what it tests."""
    with pytest.raises(MetadataError):
        load_metadata(data, "here")


NESTED_LISTS = tower(b"]", b"](%b%be")
ENUMERATION = name(DCP, "_MEM_FORMAT_ENCODING")
TOLD = {
    "a member of an enumeration": b"\x80\x04" + ENUMERATION + NESTED_LISTS + b"\x85R.",
    "a memory format": b"\x80\x04" + name(DCP, "TensorProperties") + b")\x81(NNN" + NESTED_LISTS + b"Ntb.",
    "a list of properties": b"\x80\x04" + name(DCP, "TensorProperties") + b")\x81](NNN" + NESTED_LISTS + b"Neb.",
    "a size": b"\x80\x04" + name("torch", "Size") + NESTED_LISTS + b"\x85R.",
    "a device": b"\x80\x04" + name("torch", "device") + NESTED_LISTS + b"\x85R.",
    "the whole": b"\x80\x04" + NESTED_LISTS + b".",
}


@pytest.mark.parametrize("data", TOLD.values(), ids=TOLD)
def test_what_is_refused_is_not_told_at_any_length(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(MetadataError) as caught:
            load_metadata(data, "here")
        assert len(str(caught.value)) < 500
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def endless_lists() -> Any:
    """A list that nobody can print."""
    value: list[Any] = []
    for _ in range(LEVELS):
        value = [value, value]
    return Metadata(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "metadata",
    [
        Metadata({}, storage_data={"x": _StorageInfo(endless_lists(), 0, 1)}),
        Metadata({}, storage_data={"x": _StorageInfo("x", endless_lists(), 1)}),
        Metadata({}, storage_data={"x": _StorageInfo("x", 0, endless_lists())}),
        Metadata({}, storage_data={"x": endless_lists()}),
        Metadata({"x": TensorStorageMetadata(TensorProperties(), endless_lists(), [])}, storage_data={"x": 1}),
    ],
)
def test_nor_is_what_does_not_fit_once_it_is_loaded(metadata: Metadata) -> None:
    with pytest.raises(MetadataError) as caught:
        load_metadata(pickle.dumps(metadata), "here")
    assert len(str(caught.value)) < 300


def test_a_name_that_is_refused_is_not_told_at_any_length() -> None:
    with pytest.raises(MetadataError, match="allowed_metadata_types") as caught:
        load_metadata(b"\x80\x04cos\n" + b"x" * 100_000 + b"\n.", "here")
    assert len(str(caught.value)) < 1000


def test_one_list_of_chunks_is_not_for_all_tensors() -> None:
    chunks = [ChunkStorageMetadata(torch.Size([0]), torch.Size([1]))] * 1000
    tensor = TensorStorageMetadata(TensorProperties(), torch.Size([1]), chunks)
    with pytest.raises(MetadataError, match="chunks"):
        load_metadata(pickle.dumps(Metadata({f"w{n}": tensor for n in range(1000)}, storage_data={})), "here")


def minus(number: int, bits: int = 12) -> bytes:
    """As many of -1 and -2, which have the same hash, as all tuples of them do: others for each number."""
    return b"".join(b"J" + struct.pack("<i", -1 - (number >> bit & 1)) for bit in range(bits))


def real(value: float) -> bytes:
    return b"G" + struct.pack(">d", value)


COLLIDING = {
    "tuples": [b"(" + minus(number) + b"t" for number in range(3000)],
    "tuples that end with a name": [b"(" + minus(number) + text("x") + b"t" for number in range(3000)],
    "tuples that begin with a name": [b"(" + text("x") + minus(number) + b"t" for number in range(3000)],
    "pairs of tuples": [b"(" + minus(number) + b"t" + b"N\x86" for number in range(3000)],
    "sizes": [name("torch", "Size") + b"(" + minus(number) + b"t\x85R" for number in range(3000)],
    "frozensets": [b"((" + minus(number) + b"tN\x91" for number in range(3000)],
}  # fmt: skip


def test_indices_that_collide_are_few() -> None:
    """Equal ones here; others can be made of them once they are keys."""
    state = text("fqn") + text("w") + text("offset") + b"N"
    index = name(DCP, "MetadataIndex") + b")\x81}(" + state + b"ub"
    with pytest.raises(MetadataError, match="again and again"):
        load_metadata(b"\x80\x04}(" + (index + b"N") * 3000 + b"u.", "here")


@pytest.mark.parametrize("keys", COLLIDING.values(), ids=COLLIDING)
def test_keys_of_the_same_hash_are_few(keys: list[bytes]) -> None:
    values = [pickle.loads(b"\x80\x04" + key + b".") for key in keys]
    assert (len(set(values)), len(set(map(hash, values)))) == (3000, 1)
    data = b"\x80\x04}(" + b"".join(key + b"N" for key in keys) + b"u."
    with pytest.raises(MetadataError, match="share their hashes"):
        load_metadata(data, "here")


RARE = {
    "complex": [real(-1000003.0 * number) + real(number) + b"\x86R" for number in range(3000)],
    "slice": [minus(number, 3) + b"\x87R" for number in range(3000)],
    "PurePosixPath": [text(f"{number}") + b"\x85RN}" + text("_hash") + b"K\x05s\x86b" for number in range(3000)],
}


@pytest.mark.parametrize("kind", RARE)
def test_what_can_be_given_any_hash_is_rare(kind: str) -> None:
    of = name("pathlib" if kind.endswith("Path") else "builtins", kind)
    things = b"".join(of + thing for thing in RARE[kind])
    loaded = pickle.loads(b"\x80\x04](" + things + b"e.")
    assert kind == "slice" or len(set(map(hash, loaded))) == 1
    with pytest.raises(MetadataError, match="more than 1000 paths"):
        load_metadata(b"\x80\x04](" + things + b"e.", "here")


def test_sizes_of_lists_are_refused() -> None:
    """Nobody has looked at their hashes."""
    with pytest.raises(MetadataError, match="no tuple"):
        load_metadata(b"\x80\x04" + name("torch", "Size") + b"](K\x01K\x02e\x85R.", "here")


def test_no_index_in_a_tuple_changes_its_hash() -> None:
    index = name(DCP, "MetadataIndex") + b")\x81\x94}(" + text("fqn") + text("w") + text("offset") + b"Nub"
    with pytest.raises(MetadataError, match="an index in a tuple"):
        load_metadata(b"\x80\x04" + index + b"\x85.", "here")


PARTS = st.text(max_size=8) | st.integers() | st.none() | st.booleans()
KEYS = PARTS | st.lists(PARTS, max_size=6).map(tuple) | st.tuples(st.text(max_size=3), st.tuples(PARTS, PARTS))
PLANS = st.dictionaries(KEYS, KEYS | st.lists(KEYS, max_size=3) | st.frozensets(KEYS, max_size=3), max_size=4)
SIZES = st.lists(st.integers(0, 2**62), max_size=5).map(torch.Size)


@st.composite
def real_metadata(draw: st.DrawFn) -> Metadata:
    """As DCP writes it, and what planners may add."""
    tensors: dict[str, Any] = {}
    places: dict[MetadataIndex, _StorageInfo] = {}
    for fqn in draw(st.sets(st.text(max_size=20), max_size=4)):
        place = _StorageInfo("__0_0.distcp", draw(st.integers(0, 2**61)), draw(st.integers(0, 2**40)))
        if draw(st.booleans()):
            tensors[fqn] = BytesStorageMetadata()
            places[MetadataIndex(fqn)] = place
            continue
        offset, size = draw(SIZES), draw(SIZES)
        dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.bool]))
        tensors[fqn] = TensorStorageMetadata(TensorProperties(dtype), size, [ChunkStorageMetadata(offset, size)])
        places[MetadataIndex(fqn, offset, draw(st.none() | st.integers(0, 9)))] = place
    return Metadata(tensors, draw(PLANS), places)


@given(real_metadata(), st.sampled_from([2, 3, 4, 5]))
def test_real_metadata_are_accepted_and_equal(metadata: Metadata, protocol: int) -> None:
    for data in (pickle.dumps(metadata, protocol), dump_metadata(metadata)):
        loaded = load_metadata(data, "here")
        loaded.storage_meta = None
        assert loaded == metadata
        assert {type(index) for index in loaded.storage_data} <= {MetadataIndex}
        assert pickle.loads(pickle.dumps(loaded)) == metadata


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_planner_data_of_a_large_model(protocol: int) -> None:
    """Paths share their parts, and some are shared as a whole."""
    layers = [str(n) for n in range(3000)]
    paths = {f"model.layers.{n}.{part}": ("model", "layers", n, part) for n in layers for part in ("weight", "bias")}
    shared = [*paths.values()] * 2
    metadata = Metadata({}, {**paths, "again": shared, ("a", ("b", 3)): {1, ("x",)}}, {})
    loaded = load_metadata(pickle.dumps(metadata, protocol), "here")
    assert loaded.planner_data == metadata.planner_data


TOKENS = [bytes([opcode]) for opcode in b")N]}(t\x85\x86\x87\x91\x94eusabR\x90\x8f01"]
TOKENS += [b"h\x00", b"h\x01", b"h\x02", b"K\x01", text("x"), name(DCP, "MetadataIndex"), b")\x81"]


@given(st.lists(st.sampled_from(TOKENS), max_size=200))
def test_any_opcodes_end_in_one_error_or_a_bounded_tuple(tokens: list[bytes]) -> None:
    data = b"\x80\x04N\x94" + b"".join(tokens) + b"."
    try:
        loaded = SafeUnpickler(data, "here").load()
    except Exception:  # noqa: BLE001  # ``load_metadata`` makes one of all
        return
    assert leaves(loaded) <= 70 * _MAX_WEIGHT


def leaves(value: Any) -> int:
    """How many parts hashing it would visit."""
    return 1 + sum(map(leaves, value)) if isinstance(value, tuple | frozenset) else 1
