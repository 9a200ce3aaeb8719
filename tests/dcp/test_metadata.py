from __future__ import annotations

import builtins
import gc
import importlib
import io
import operator
import os
import pathlib
import pickle
import random
import subprocess
import tracemalloc
import zlib
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from aiockpt.dcp import unpickling as room
from aiockpt.dcp.collector import without_collector
from aiockpt.dcp.metadata import dump_metadata, load_metadata
from aiockpt.dcp.opcodes import looked_through
from aiockpt.errors import MetadataError
from dcp.checkpoints import save

WHERE = "s3://bucket/ckpt/.metadata"


def load(data: bytes, **kwargs: Any) -> Metadata:
    return load_metadata(data, WHERE, **kwargs)


def sample() -> Metadata:
    """As two ranks leave it that hold the halves of a matrix, and a counter."""
    chunks = [ChunkStorageMetadata(torch.Size([n, 0]), torch.Size([4, 3])) for n in (0, 4)]
    properties = TensorProperties(torch.bfloat16, requires_grad=True, pin_memory=False)
    places = {
        MetadataIndex("w", torch.Size([4 * rank, 0]), rank): _StorageInfo(f"__{rank}_0.distcp", 0, 1600)
        for rank in range(2)
    }
    places[MetadataIndex("step")] = _StorageInfo("__0_0.distcp", 1600, 5, ["stream.zstd"])
    return Metadata(
        {
            "w": TensorStorageMetadata(properties, torch.Size([8, 3]), chunks),
            "step": BytesStorageMetadata(),
        },
        planner_data={"w": ("model", "w"), "step": ("step",), "list": ("list", 0)},
        storage_data=places,
        storage_meta=StorageMeta("s3://bucket/ckpt", "save-id"),
    )


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self._call = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call


def with_planner_data(data: Any) -> bytes:
    metadata = sample()
    metadata.planner_data = data
    return pickle.dumps(metadata)


def test_what_is_written_comes_back() -> None:
    assert load(dump_metadata(sample())) == sample()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_any_protocol_that_a_writer_may_have_used(protocol: int) -> None:
    assert load(pickle.dumps(sample(), protocol)) == sample()


def test_other_threads_get_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python code runs for every few of a pickle's bytes."""
    reads: list[int] = []

    class Watched(room._Turns):
        def peek(self, size: int, /) -> memoryview:
            found = super().peek(size)
            reads.append(len(found))
            return found

    monkeypatch.setattr(room, "_Turns", Watched)
    places = {MetadataIndex(f"w{n}", torch.Size([n])): _StorageInfo("__0_0.distcp", n, 1) for n in range(5000)}
    data = dump_metadata(Metadata({}, storage_data=places))
    assert len(load_metadata(data, "here").storage_data) == 5000
    assert len(reads) > len(looked_through(data).shown) / 2**17 > 2
    assert max(reads) <= 2**17


def test_stock_pickle_reads_ours() -> None:
    assert pickle.loads(dump_metadata(sample())) == sample()


def test_stock_metadata_of_every_dtype_layout_and_memory_format(tmp_path: Path) -> None:
    state: dict[str, Any] = {
        str(dtype): torch.zeros(8, dtype=torch.uint8).view(dtype)
        for dtype in (torch.float64, torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint16)
    }
    state["channels last"] = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)
    state["grad"] = torch.nn.Parameter(torch.zeros(3))
    state["nested"] = {"list": [torch.zeros(2), 1, "x"], "none": None}
    save(state, dcp.FileSystemWriter(tmp_path))
    data = (tmp_path / ".metadata").read_bytes()
    assert load(data) == pickle.loads(data)


def test_metadata_older_than_storage_meta() -> None:
    metadata = sample()
    del metadata.__dict__["storage_meta"]
    assert load(pickle.dumps(metadata)).storage_meta == StorageMeta()


def test_paths_as_other_pythons_pickle_them() -> None:
    metadata = sample()
    assert metadata.storage_meta
    metadata.storage_meta.checkpoint_id = pathlib.PurePosixPath("/checkpoints/7")
    own = f"c{pathlib.PurePosixPath.__module__}\nPurePosixPath".encode()
    data = pickle.dumps(metadata, protocol=2)
    assert own in data
    for module in (b"pathlib", b"pathlib._local"):
        loaded = load(data.replace(own, b"c" + module + b"\nPosixPath")).storage_meta
        assert loaded
        assert loaded.checkpoint_id == Path("/checkpoints/7")
    data = data.replace(own, b"cpathlib\nWindowsPath")
    loaded = load(data).storage_meta
    assert loaded
    assert isinstance(loaded.checkpoint_id, pathlib.PureWindowsPath)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (Calls(os.system, "true"), f"{os.system.__module__}.system"),
        (Calls(subprocess.call, ["true"]), "subprocess.call"),
        (Calls(eval, "1"), "builtins.eval"),
        (Calls(exec, "1"), "builtins.exec"),
        (Calls(getattr, "x", "eval"), "builtins.getattr"),
        (Calls(builtins.__import__, "os"), "builtins.__import__"),
        (Calls(operator.attrgetter("system"), "os"), "operator.attrgetter"),
        (Calls(reduce, pow, [1]), "_functools.reduce"),
        (Calls(torch.load, "x"), "torch.serialization.load"),
        (Calls(torch.hub.load, "x"), "torch.hub.load"),
        (Calls(torch._utils._rebuild_tensor_v2, None), "torch._utils._rebuild_tensor_v2"),
        (Calls(io.open, "/etc/passwd"), "io.open"),
        (Calls(pickle.loads, b""), "_pickle.loads"),
        (Calls(os.remove, "x"), f"{os.remove.__module__}.remove"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_could_run_code_is_refused_by_name(call: Calls, name: str) -> None:
    with pytest.raises(MetadataError) as caught:
        load(with_planner_data(call))
    assert name in str(caught.value)
    assert WHERE in str(caught.value)
    assert "allowed_metadata_types" in str(caught.value)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch", "serialization.os.system"),
        ("torch", "Size.__init__"),
        ("torch.serialization", "os.system"),
        ("torch.distributed.checkpoint.metadata", "os.system"),
        ("torch.distributed.checkpoint.metadata", "Metadata.__init__.__globals__"),
        ("collections", "OrderedDict.fromkeys"),
        ("collections", "sys.modules"),
        ("pathlib", "os.system"),
        ("pathlib", "Path"),
        ("builtins", "set.__class__"),
        ("builtins", "type"),
        ("torch", "load"),
        ("torch", "device.__class__"),
    ],
)
def test_names_with_and_without_dots_that_lead_elsewhere(module: str, name: str) -> None:
    data = b"\x80\x04" + _text(module) + _text(name) + b"\x93."  # STACK_GLOBAL
    with pytest.raises(MetadataError, match="refused") as caught:
        load(data)
    assert f"{module}.{name}" in str(caught.value)


def _text(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def _set_attribute(module: str, name: str, *, of_instance: bytes = b"") -> bytes:
    """BUILD with a pair sets attributes: (None, {name: value}); of classes and functions, too."""
    state = b"N}" + _text("poison") + _text("value") + b"s\x86"
    return b"\x80\x04" + _text(module) + _text(name) + b"\x93" + of_instance + state + b"b."


@pytest.mark.parametrize(
    ("module", "name", "of_instance"),
    [
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo", b""),
        ("torch.distributed.checkpoint.metadata", "Metadata", b""),
        ("torch.distributed.checkpoint.metadata", "MetadataIndex", b""),
        ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING", b"K\x00\x85R"),
        ("torch.serialization", "_get_layout", b""),
        ("pathlib", "PosixPath", b""),
        ("torch", "Size", b""),
        ("torch", "float32", b""),
        ("collections", "OrderedDict", b""),
        ("_codecs", "encode", b""),
    ],
)
def test_a_pickle_changes_nothing_that_outlives_it(module: str, name: str, of_instance: bytes) -> None:
    target = getattr(importlib.import_module(module), name)
    target = target(0) if of_instance else target
    with pytest.raises(MetadataError):
        load(_set_attribute(module, name, of_instance=of_instance))
    assert not hasattr(target, "poison")


@dataclass
class TheirPlannerData:
    value: int


def test_types_that_the_user_trusts() -> None:
    data = with_planner_data(TheirPlannerData(3))
    with pytest.raises(MetadataError, match="TheirPlannerData"):
        load(data)
    assert load(data, allowed=[TheirPlannerData]).planner_data == TheirPlannerData(3)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../other/__0_0.distcp",
        "",
        "a/../../b",
        "\ud800",
        "a/..",
        "..",
        "x\0y",
        "/s3://b/x",
        7,
        None,
        b"x",
        ("x",) * 99,
    ],
)
def test_places_outside_the_checkpoint_are_refused(path: Any) -> None:
    metadata = sample()
    metadata.storage_data = {MetadataIndex("w"): _StorageInfo(path, 0, 1)}
    with pytest.raises(MetadataError, match="checkpoint"):
        load(pickle.dumps(metadata))


@pytest.mark.parametrize("path", ["a/b/__0_0.distcp", "..x", "a/..b/c", "ü ö/%2e%2e/+"])
def test_places_inside_the_checkpoint_are_fine(path: str) -> None:
    metadata = sample()
    metadata.storage_data = {MetadataIndex("w"): _StorageInfo(path, 0, 1)}
    assert load(pickle.dumps(metadata)) == metadata


@pytest.mark.parametrize(
    ("offset", "length"),
    [(-1, 1), (0, -1), (5, -1), (0.5, 1), (0, "1"), (None, None), (True, 1), (1 << 62, 1), (1, 1 << 70)],
)
def test_places_that_cannot_be(offset: Any, length: Any) -> None:
    metadata = sample()
    metadata.storage_data = {MetadataIndex("w"): _StorageInfo("x", offset, length)}
    with pytest.raises(MetadataError):
        load(pickle.dumps(metadata))


def _without(kind: type, *names: str) -> Any:
    """An instance that lacks attributes, as a pickle can make one."""
    made = next(value for value in _everything_in(sample()) if type(value) is kind)
    for name in names:
        made.__dict__.pop(name)
    return made


def _everything_in(metadata: Metadata) -> list[Any]:
    return [metadata, *metadata.state_dict_metadata.values(), *(metadata.storage_data or {}).values()]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"\x80",
        b"garbage",
        pickle.dumps({"state_dict_metadata": {}}),
        pickle.dumps(None),
        pickle.dumps(_without(Metadata, "state_dict_metadata")),
        pickle.dumps(Metadata({}, storage_data=[1])),
        pickle.dumps(Metadata({}, storage_data=7)),
        pickle.dumps(Metadata([])),  # type: ignore[arg-type]
        pickle.dumps(Metadata({}, storage_data={"w": _without(_StorageInfo, "relative_path")})),
        pickle.dumps(Metadata({}, storage_data={"w": _without(_StorageInfo, "length")})),
        pickle.dumps(Metadata({}, storage_data={"w": ("x", 0, 1)})),
        b"\x80\x04K\x01Q.",  # a persistent id
        b"\x80\x04\x82\x01.",  # an extension code
    ],
)
def test_damage_and_nonsense_end_in_one_error(data: bytes) -> None:
    with pytest.raises(MetadataError, match="bucket/ckpt"):
        load(data)


def test_every_truncation_ends_in_one_error() -> None:
    data = dump_metadata(sample())
    pickle_nbytes = looked_through(data).end
    for length in set(range(len(data))) - {pickle_nbytes}:  # without our trailer it is as stock DCP writes it
        with pytest.raises(MetadataError):
            load(data[:length])


def test_flipped_bits_end_in_one_error_or_in_metadata() -> None:
    data = pickle.dumps(sample())  # ours has a CRC32
    rng = random.Random(0)
    for _ in range(3000):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            loaded = load(bytes(damaged))
        except MetadataError:
            continue
        assert isinstance(loaded, Metadata)


def test_ordered_dicts_are_what_state_dicts_are_made_of() -> None:
    data = with_planner_data(OrderedDict(a=(1, 2.5, None, b"x", {"s"}, frozenset("f"), 1j)))
    assert load(data).planner_data == OrderedDict(a=(1, 2.5, None, b"x", {"s"}, frozenset("f"), 1j))


@pytest.mark.parametrize("at", [0, 100, 500, -1, -14, -15, -18])
def test_a_flipped_bit_anywhere_in_ours_is_seen(at: int) -> None:
    data = bytearray(dump_metadata(sample()))
    data[at] ^= 4
    with pytest.raises(MetadataError, match="bucket/ckpt"):
        load(bytes(data))


@pytest.mark.parametrize("rest", [b".", b"\0", b"\0\0\0\0aiockpt crc3"])
def test_what_follows_a_pickle_is_refused(rest: bytes) -> None:
    with pytest.raises(MetadataError, match="something follows"):
        load(pickle.dumps(sample()) + rest)


@pytest.mark.parametrize("data", [10**12, -1, 3.5, None])
def test_bytearrays_are_made_of_bytes(data: Any) -> None:
    with pytest.raises(MetadataError):
        load(with_planner_data(Calls(bytearray, data)))


def test_bytearrays_sets_and_complex_numbers_of_old_protocols() -> None:
    values = [bytearray(b"x"), bytearray(), {1, 2}, frozenset("ab"), 1j, b"\xff\0", slice(1, None)]
    for protocol in (2, 3, 4, 5):
        metadata = sample()
        metadata.planner_data = values
        assert load(pickle.dumps(metadata, protocol)).planner_data == values


def _again_and_again(call: bytes, times: int = 20_000) -> bytes:
    """A pickle that gives one long list (or text) to a call many times."""
    long = b"](" + b"K\x01" * 50_000 + b"e\x94" if b"encode" not in call else _text("x" * 200) + b"\x94"
    arguments = b"Nh\x00\x86" if b"MetadataIndex" in call else b"h\x00\x85"
    return b"\x80\x04" + long + b"0](" + (call + arguments + b"R") * times + b"e."


@pytest.mark.parametrize(
    ("module", "name"), [("builtins", "set"), ("builtins", "frozenset"), ("collections", "OrderedDict"),
                         ("builtins", "bytearray"), ("torch", "Size"), ("pathlib", "PurePosixPath"),
                         ("torch.distributed.checkpoint.metadata", "MetadataIndex")]
)  # fmt: skip
def test_a_short_pickle_does_not_copy_for_ever(module: str, name: str) -> None:
    data = _again_and_again(_text(module) + _text(name) + b"\x93")
    tracemalloc.start()
    try:
        with pytest.raises(MetadataError):
            load(data)
        assert tracemalloc.get_traced_memory()[1] < 20 * len(data)
    finally:
        tracemalloc.stop()


def test_the_message_of_a_refusal_is_short() -> None:
    metadata = sample()
    metadata.storage_data = {MetadataIndex("w"): _StorageInfo("../" * 100_000, 0, 1)}
    with pytest.raises(MetadataError) as caught:
        load(pickle.dumps(metadata))
    assert len(str(caught.value)) < 300


def test_nothing_is_left_to_the_collector() -> None:
    """What a pickler has seen is several times the metadata; in a cycle it would stay until the collector comes."""

    def kinds() -> list[type]:
        load(dump_metadata(sample()))
        return [type(left) for left in gc.get_objects()]

    gc.collect()  # what other tests left
    assert not [kind for kind in without_collector(kinds) if issubclass(kind, pickle.Pickler | pickle.Unpickler)]


def test_nor_is_what_was_loaded() -> None:
    def standing() -> int:
        return sum(issubclass(type(value), MetadataIndex | TensorProperties) for value in gc.get_objects())

    def more() -> int:
        before = standing()
        for data in (dump_metadata(sample()), pickle.dumps(sample())[:-40] + b"."):
            with suppress(MetadataError):
                load(data)
        return standing() - before

    gc.collect()  # what other tests left
    assert without_collector(more) == 0


def test_metadata_of_one_length_differ_in_their_crc32() -> None:
    """Whether a lost answer to a commit meant success is told by size and CRC32 of what stands."""

    def crc(path: str) -> tuple[int, int]:
        places = {MetadataIndex("step"): _StorageInfo(path, 0, 5)}
        data = dump_metadata(Metadata({"step": BytesStorageMetadata()}, storage_data=places))
        return len(data), zlib.crc32(data)

    found = {crc(f"__0_{number}.distcp") for number in range(10)}
    assert len({length for length, _ in found}) == 1
    assert len(found) == 10
