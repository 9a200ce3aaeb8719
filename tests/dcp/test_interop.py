"""Whoever writes a checkpoint, whoever reads it: stock DCP and ours, over every server."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import IO, Any, cast

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter
from torch.distributed.checkpoint.filesystem import SerializationFormat
from torch.distributed.checkpoint.metadata import Metadata

from aiockpt import S3Checkpoint, S3ReaderConstructor
from aiockpt.dcp import HexPrefixStrategy
from dcp.checkpoints import Place, StateDict, emptied, load, random_tensor, same_bits, save


def sample() -> StateDict:
    """A little of everything that checkpoints hold: below and above the pipelines' thresholds."""
    base = random_tensor((300, 400), torch.float32, 1)
    return {
        "model": {
            "weight": base,
            "transposed": base.t(),
            "half": random_tensor((700, 300), torch.bfloat16, 2),
            "view": base[10:40, 5:300],
            "bias": random_tensor((300,), torch.float32, 3),
            "scalar": torch.tensor(3.5),
            "empty": torch.empty(0, 4),
            "mask": random_tensor((1000,), torch.bool, 4),
        },
        "step": 7,
        "history": [1.0, "two", None],
        "rng": torch.get_rng_state(),
    }


@pytest.mark.parametrize("single_file_per_rank", [True, False])
def test_round_trip_on_every_server(foreign: Place, single_file_per_rank: bool) -> None:
    state = sample()
    foreign.save(state, single_file_per_rank=single_file_per_rank)
    assert same_bits(foreign.load(emptied(state)), state)
    part = {"model": {"half": state["model"]["half"]}}
    assert same_bits(foreign.load(emptied(part)), part)


@pytest.mark.parametrize("constructor", ["sequential", "range_based", "dcp_optimized"])
def test_each_reader_on_every_server(foreign: Place, constructor: str) -> None:
    state = sample()
    foreign.save(state)
    made = getattr(S3ReaderConstructor, constructor)()
    assert same_bits(foreign.load(emptied(state), reader_constructor=made), state)


def test_several_parts_on_every_server(foreign: Place) -> None:
    """More than one part, and more than one range request."""
    state = {"w": random_tensor((3, 1 << 20), torch.float32, 1), "v": random_tensor((1 << 19, 3), torch.float32, 2).t()}
    foreign.save(state, part_size=5 << 20)
    assert same_bits(foreign.load(emptied(state), part_size=5 << 20), state)


@pytest.mark.parametrize("form", SerializationFormat)
def test_formats_on_every_server(foreign: Place, form: SerializationFormat) -> None:
    state = sample()
    foreign.save(state, serialization_format=form, prefix_strategy=HexPrefixStrategy(epoch_num=3))
    assert same_bits(foreign.load(emptied(state)), state)
    assert foreign.keys() == ["ckpt/.metadata", "ckpt/0000000000/epoch_3/__0_0.distcp"]


@pytest.mark.parametrize("kwargs", [{}, {"single_file_per_rank": False}, {"thread_count": 3}])
def test_stock_reads_what_we_write(local: Place, tmp_path: Path, kwargs: dict[str, Any]) -> None:
    state = sample()
    local.save(state, **kwargs)
    folder = local.sync_down("ckpt", tmp_path)
    assert same_bits(load(emptied(state), dcp.FileSystemReader(folder)), state)


@pytest.mark.parametrize("kwargs", [{}, {"single_file_per_rank": False}])
def test_what_we_write_is_what_stock_writes(local: Place, tmp_path: Path, kwargs: dict[str, Any]) -> None:
    """The same objects, of the same lengths, with the same metadata but for ids.

    With several objects a rank it is ours to say which items are in which.
    """
    state = sample()
    save(state, dcp.FileSystemWriter(tmp_path / "stock", **kwargs))
    local.save(state, **kwargs)
    ours = local.sync_down("ckpt", tmp_path)
    names = sorted(path.name for path in (tmp_path / "stock").iterdir())
    assert sorted(path.name for path in ours.iterdir()) == names
    for name in names:
        if name != ".metadata":
            assert (ours / name).read_bytes() == (tmp_path / "stock" / name).read_bytes()
    metadata: list[Metadata] = [
        pickle.loads((folder / ".metadata").read_bytes()) for folder in (ours, tmp_path / "stock")
    ]
    for each in metadata:
        each.storage_meta = None
    assert metadata[0] == metadata[1]


@pytest.mark.parametrize("kwargs", [{}, {"single_file_per_rank": False}, {"thread_count": 3}])
@pytest.mark.parametrize("constructor", ["dcp_optimized", "sequential"])
def test_we_read_what_stock_writes(local: Place, tmp_path: Path, kwargs: dict[str, Any], constructor: str) -> None:
    state = sample()
    save(state, dcp.FileSystemWriter(tmp_path, **kwargs))
    local.sync_up(tmp_path, "ckpt")
    made = getattr(S3ReaderConstructor, constructor)()
    assert same_bits(local.load(emptied(state), reader_constructor=made), state)


def test_we_read_stock_safetensors_files(local: Place, tmp_path: Path) -> None:
    state = sample()
    state["model"] = {name: tensor.contiguous() for name, tensor in state["model"].items()}
    save(state, dcp.FileSystemWriter(tmp_path, serialization_format=SerializationFormat.SAFETENSORS))
    local.sync_up(tmp_path, "ckpt")
    assert same_bits(local.load(emptied(state)), state)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
def test_fsspec_and_we_read_each_other(local: Place) -> None:
    options: dict[str, Any] = {
        "key": local.server.access_key,
        "secret": local.server.secret_key,
        "endpoint_url": local.server.endpoint_url,
        "skip_instance_cache": True,
    }
    state = sample()
    save(state, FsspecWriter(local.uri("theirs"), **options))
    assert same_bits(local.load(emptied(state), "theirs"), state)
    local.save(state, "ours")
    assert same_bits(load(emptied(state), FsspecReader(local.uri("ours"), **options)), state)


def test_stock_classes_over_our_file_system(foreign: Place) -> None:
    state = sample()
    writer: Any = dcp.FileSystemWriter("unused", sync_files=False)
    writer.fs, writer.path = foreign.fs(), foreign.uri("ckpt")
    save(state, writer)
    reader: Any = dcp.FileSystemReader("unused")
    reader.fs, reader.path = foreign.fs(), foreign.uri("ckpt")
    assert same_bits(load(emptied(state), reader), state)
    assert same_bits(foreign.load(emptied(state)), state)
    assert foreign.keys() == ["ckpt/.metadata", "ckpt/__0_0.distcp"]


def test_safetensors_reads_our_files(local: Place) -> None:
    from safetensors.torch import load as load_file

    state = {"w": random_tensor((300, 400), torch.float32, 1), "t": random_tensor((30, 40), torch.float16, 2).t()}
    local.save(state, serialization_format=SerializationFormat.SAFETENSORS)
    data = local.get("ckpt/__0_0.distcp")
    assert same_bits(load_file(data), state)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["__metadata__"]["format"] == "pt"
    assert json.loads(header["__metadata__"]["DCP_SHARDING_INFO"]) == {
        "w": {"saved_offsets": [0, 0]},
        "t": {"saved_offsets": [0, 0]},
    }


class Archived:
    """Rewrites the items of a stock checkpoint in another dialect of archives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metadata: Metadata = pickle.loads((folder / ".metadata").read_bytes())

    def rewrite(self, dialect: Any) -> None:
        places = self.metadata.storage_data or {}
        objects: dict[str, bytearray] = {}
        for place in places.values():
            stored = (self.folder / place.relative_path).read_bytes()[place.offset : place.offset + place.length]
            data = objects.setdefault(place.relative_path + ".new", bytearray())
            try:
                tensor = torch.load(io.BytesIO(stored), weights_only=True)
            except Exception:  # noqa: BLE001  # no tensor: a serialized object
                tensor = None
            stored = dialect(tensor) if isinstance(tensor, torch.Tensor) else stored
            place.offset, place.length = len(data), len(stored)
            data += stored
            place.relative_path += ".new"
        for name, content in objects.items():
            (self.folder / name).write_bytes(content)
        (self.folder / ".metadata").write_bytes(pickle.dumps(self.metadata))


def without_crc(tensor: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(tensor, buffer)
    finally:
        torch.serialization.set_crc32_options(True)
    return buffer.getvalue()


def with_the_name_of_a_path(tensor: torch.Tensor, folder: Path) -> bytes:
    """torch names the archive's folder after the file."""
    path = folder / "a rather long name of an archive.pt"
    torch.save(tensor, path)
    return path.read_bytes()


def of_old_torch(tensor: torch.Tensor) -> bytes:
    """Before zip archives."""
    buffer = io.BytesIO()
    torch.save(tensor, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize("dialect", ["crc off", "named", "legacy"])
def test_archives_of_other_dialects(local: Place, tmp_path: Path, dialect: str) -> None:
    state = sample()
    folder = tmp_path / "stock"
    save(state, dcp.FileSystemWriter(folder))
    made = {
        "crc off": without_crc,
        "named": lambda tensor: with_the_name_of_a_path(tensor, tmp_path),
        "legacy": of_old_torch,
    }
    Archived(folder).rewrite(made[dialect])
    local.sync_up(folder, "ckpt")
    assert same_bits(local.load(emptied(state)), state)
    part = {"model": {"weight": state["model"]["weight"]}}
    assert same_bits(local.load(emptied(part)), part)


def test_torch_save_and_load_through_s3_checkpoint(foreign: Place) -> None:
    state = sample()
    checkpoint = S3Checkpoint(foreign.server.region, endpoint=foreign.server.endpoint_url)
    with checkpoint.writer(foreign.uri("plain.pt")) as writer:
        torch.save(state, cast("IO[bytes]", writer))
    with checkpoint.reader(foreign.uri("plain.pt")) as reader:
        assert same_bits(torch.load(reader, weights_only=True), state)
    assert same_bits(torch.load(io.BytesIO(foreign.get("plain.pt")), weights_only=True), state)


@pytest.mark.parametrize("constructor", ["sequential", "range_based"])
def test_torch_load_on_each_reader_with_random_access(local: Place, constructor: str) -> None:
    state = sample()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    local.put("plain.pt", buffer.getvalue())
    made = getattr(S3ReaderConstructor, constructor)()
    checkpoint = S3Checkpoint(local.server.region, local.server.endpoint_url, reader_constructor=made)
    with checkpoint.reader(local.uri("plain.pt")) as reader:
        assert same_bits(torch.load(reader, weights_only=True), state)


def test_the_archive_keeps_the_crc_of_its_elements(local: Place) -> None:
    local.save({"w": random_tensor((300, 400), torch.float32, 1)})
    data = bytearray(local.get("ckpt/__0_0.distcp"))
    assert zipfile.ZipFile(io.BytesIO(data)).testzip() is None
    data[len(data) // 2] ^= 1
    assert zipfile.ZipFile(io.BytesIO(data)).testzip() == "archive/data/0"
