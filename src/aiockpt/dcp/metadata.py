"""A checkpoint's ``.metadata``: a pickle, loaded without letting it run code, and checked before it is believed.

Only the types that real checkpoints hold are constructed; any other name in the pickle is refused, naming it and the
way to allow it. What the metadata says of places is checked to stay inside the checkpoint.
"""

from __future__ import annotations

import codecs
import copyreg
import enum
import io
import pathlib
import pickle
import reprlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sized
from functools import cache, partial
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from aiockpt.crc import crc32
from aiockpt.dcp.collector import collector_paused
from aiockpt.dcp.opcodes import end_of_pickle
from aiockpt.errors import MetadataError

_Reduced = tuple[Callable[..., object], tuple[type, ...], dict[str, object]]

_ALLOWED: dict[str, frozenset[str]] = {
    "torch.distributed.checkpoint.metadata": frozenset({
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    }),
    "torch.distributed.checkpoint.filesystem": frozenset({"_StorageInfo"}),
    "torch.distributed._shard.sharded_tensor.metadata": frozenset({"MEM_FORMAT_ENCODING", "TensorProperties"}),
    "torch": frozenset({"device"} | {n for n, v in vars(torch).items() if isinstance(v, torch.dtype)}),
    "builtins": frozenset({"slice"}),
}  # fmt: skip

#: What stands for a name in the pickle: torch's function for layouts, without attributes that a pickle could set.
_LAYOUTS = {
    ("torch.serialization", "_get_layout"): {
        str(v): v for v in vars(torch).values() if isinstance(v, torch.layout)
    }.__getitem__
}

#: Types and functions that copy what they are given: one that is given a long list again and again makes a small pickle
#: fill the memory.
_COPYING: dict[tuple[str, str], Callable[..., object]] = {
    ("_codecs", "encode"): lambda text, encoding: codecs.encode(text, {"latin1": "latin-1"}[encoding]),
    ("builtins", "bytearray"): lambda *data: bytearray(*map(_octets, data)),
    ("builtins", "complex"): complex,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "set"): set,
    ("collections", "OrderedDict"): OrderedDict,
    ("pathlib", "PosixPath"): pathlib.PosixPath,
    ("pathlib", "PurePosixPath"): pathlib.PurePosixPath,
    ("pathlib", "PureWindowsPath"): pathlib.PureWindowsPath,
    ("pathlib", "WindowsPath"): pathlib.PureWindowsPath,
}

#: Modules as other Pythons name them: protocol 2, and Python 3.13.
_MODULES = {"__builtin__": "builtins", "pathlib._local": "pathlib"}

#: torch's own limit of dimensions.
_MAX_DIMENSIONS = 64


def _octets(data: object) -> object:
    """What bytearrays are made of: not a number, which would be taken for a length."""
    if not isinstance(data, bytes | str | list):
        raise TypeError("a bytearray of no bytes")
    return data


def _size(dimensions: tuple[int, ...]) -> torch.Size:
    """Stands for ``torch.Size``."""
    if len(dimensions) > _MAX_DIMENSIONS:
        raise ValueError(f"{len(dimensions)} dimensions")
    return torch.Size(dimensions)


class _BareIndex:
    """Stands for ``MetadataIndex``: makes bare ones, as pickles do, and takes no arguments, which it would copy."""

    def __new__(cls) -> MetadataIndex:  # type: ignore[misc]  # it makes none of its own kind
        return object.__new__(MetadataIndex)


#: What follows the pickle in our metadata, after its CRC32 in hexadecimal digits. As four bytes it would make the CRC32
#: of the whole the same for all metadata of one length, and who compares objects by that would take one for another.
_TRAILER = b"aiockpt crc32"
_CRC_BYTES = 8

#: Far above S3's largest object; offsets and ends stay within 63 bits.
_MAX_OBJECT_BYTES = 1 << 62


class _Frames(io.BytesIO):
    """Read by Python code, of which a pickle takes a call for each of its frames of 64 KiB.

    There other threads get their turn (an event loop, training): the unpickler itself never gives way, and takes 70 ms
    for the metadata of 20,000 tensors.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size)


class _Allowance:
    """How long all that is copied may be together: no longer than the pickle."""

    def __init__(self, length: int) -> None:
        self._left = length

    def bounded(self, kind: Callable[..., object]) -> Callable[..., object]:
        """``kind``, whose arguments count."""

        def call(*args: Any) -> object:
            self._left -= sum(len(arg) for arg in args if isinstance(arg, Sized))
            if self._left < 0:
                raise ValueError("it copies the same again and again")
            return kind(*args)

        return call


class _SafeUnpickler(pickle.Unpickler):
    """An unpickler that finds only what it was told of, and can undo what was done to that."""

    def __init__(self, data: bytes, where: str, allowed: Iterable[type]) -> None:
        super().__init__(_Frames(data))
        self._where = where
        allowance = _Allowance(len(data))
        self._extra = {
            **_LAYOUTS,
            **{name: allowance.bounded(kind) for name, kind in _COPYING.items()},
            ("torch", "Size"): partial(_size),  # one of its own, since pickles can set attributes
            **{(kind.__module__, kind.__qualname__): kind for kind in allowed},
        }
        self._before: list[tuple[Any, dict[str, Any]]] = []

    def find_class(self, module: str, name: str) -> Any:
        """Called by pickle for every name."""
        module = _MODULES.get(module, module)
        if (found := self._extra.get((module, name))) is not None:
            return found
        if name in _ALLOWED.get(module, ()):
            found = super().find_class(module, name)
            found = _BareIndex if found is MetadataIndex else found
            self._remember(found)
            return found
        raise MetadataError(
            f"{self._where} names {module}.{name}, which checkpoints do not need: refused, as loading it could run "
            f"code. If you trust this checkpoint, pass allowed_metadata_types=[{name}] to the storage reader"
        )

    def load(self) -> Any:
        """The pickled object."""
        try:
            return super().load()
        finally:
            if self._restore():
                raise MetadataError(f"{self._where} sets attributes of classes, which checkpoints do not: refused")

    def _restore(self) -> bool:
        """Undo what the pickle did to the attributes of classes; returns whether it did anything."""
        changed = False
        for target, before in self._before:
            now = dict(vars(target))
            for name in now.keys() | before.keys():
                if name not in before:
                    delattr(target, name)
                elif now.get(name) is not before[name]:
                    setattr(target, name, before[name])
                else:
                    continue
                changed = True
        return changed

    def _remember(self, found: Any) -> None:
        """Classes, and the members of enumerations, are shared by the process, and pickles can set attributes."""
        if isinstance(found, type):
            shared: list[Any] = [found, *(found if issubclass(found, enum.Enum) else ())]
            self._before += [(target, dict(vars(target))) for target in shared]


def load_metadata(data: bytes, where: str, allowed: Iterable[type] = ()) -> Metadata:
    """Load and check a ``.metadata``.

    Args:
        data: the object's bytes.
        where: its URI, for messages.
        allowed: further types that may be constructed, on the user's word.

    Raises:
        MetadataError: it is no DCP metadata, names a type that is not allowed, or points outside the checkpoint.
    """
    try:
        end = _end_of_intact(data)
        with collector_paused():
            loaded = _SafeUnpickler(data[:end], where, allowed).load()
        return _checked(loaded, where)
    except MetadataError as exc:
        if where not in str(exc):
            exc.args = (f"{where}: {exc}",)
        raise
    except Exception as exc:
        raise MetadataError(f"{where} is damaged or no checkpoint metadata: {type(exc).__name__}: {exc}") from exc


def _end_of_intact(data: bytes) -> int:
    """Where the pickle ends, its opcodes and, if it has a trailer, its CRC32 checked."""
    if data.endswith(_TRAILER) and len(data) > (length := _CRC_BYTES + len(_TRAILER)):
        if data[-length : -len(_TRAILER)] != b"%08x" % crc32(memoryview(data)[:-length]):
            raise MetadataError("the bytes do not match their CRC32: damaged; load an older checkpoint")
        data = data[:-length]
    if (end := end_of_pickle(data)) != len(data):
        raise MetadataError(f"the pickle ends at {end} and something follows: damaged; load an older checkpoint")
    return end


def _checked(loaded: Any, where: str) -> Metadata:
    if not isinstance(loaded, Metadata) or not isinstance(loaded.state_dict_metadata, dict):
        raise MetadataError(f"{where} holds {type(loaded).__name__}, not the metadata of a checkpoint")
    for name, value in loaded.state_dict_metadata.items():
        if isinstance(value, TensorStorageMetadata) and not isinstance(value.properties.dtype, torch.dtype):
            raise MetadataError(f"{where}: {reprlib.repr(name)} has no dtype")
    for info in (loaded.storage_data or {}).values():
        _check_place(info, where)
    if getattr(loaded, "storage_meta", None) is None:
        loaded.storage_meta = StorageMeta()
    return loaded


def _check_place(info: Any, where: str) -> None:
    if not isinstance(info, _StorageInfo):
        raise MetadataError(f"{where}: storage data holds {type(info).__name__} instead of places in objects")
    path, offset, length = info.relative_path, info.offset, info.length
    if not isinstance(path, str) or not _is_inside(path):
        raise MetadataError(f"{where}: the path {reprlib.repr(path)} leads out of the checkpoint")
    if not (type(offset) is type(length) is int and 0 <= offset <= offset + length <= _MAX_OBJECT_BYTES):
        raise MetadataError(
            f"{where}: {reprlib.repr(path)} has a place that cannot be: {reprlib.repr(offset)}, {reprlib.repr(length)}"
        )


@cache
def _is_inside(path: str) -> bool:
    """Whether a key made of the checkpoint's and this path is below the checkpoint's."""
    return bool(path) and not path.startswith("/") and ".." not in path.split("/") and "\0" not in path


def dump_metadata(metadata: Metadata) -> bytes:
    """The bytes of a ``.metadata``, as stock DCP reads them.

    Equal sizes, offsets, chunks and tensor properties are written once and shared by who loads them, and no Python code
    runs for a single tensor beyond the few functions below: for 20,000 tensors half the time of the stock pickle.

    Behind the pickle follow its CRC32 and a mark: unpicklers stop before them. Shared parts make that necessary, since
    a flipped bit could move a chunk and its place alike, and then nothing would contradict it.
    """
    buffer = io.BytesIO()
    with collector_paused():
        _sharing_pickler(buffer).dump(metadata)
    buffer.write(b"%08x" % crc32(buffer.getbuffer()) + _TRAILER)
    return buffer.getvalue()


def _sharing_pickler(file: io.BytesIO) -> pickle.Pickler:
    """Pickles metadata with its equal immutable parts shared."""
    pickler = pickle.Pickler(file, protocol=4)
    pickler.dispatch_table = _Shared().reducers()
    return pickler


class _Shared:
    """The equal immutable parts of metadata, of which one each is pickled.

    No pickler itself: one that its own reducers refer to would hold all that it has seen until the collector comes.
    """

    def __init__(self) -> None:
        self._sizes: dict[torch.Size | None, torch.Size | None] = {}
        self._properties: dict[tuple[object, ...], TensorProperties] = {}
        self._chunks: dict[tuple[torch.Size, torch.Size], ChunkStorageMetadata] = {}

    def reducers(self) -> dict[type, Callable[[Any], Any]]:
        """What a pickler does with each type."""
        return {
            **copyreg.dispatch_table,
            ChunkStorageMetadata: self._chunk,
            MetadataIndex: self._index,
            TensorStorageMetadata: self._tensor,
            _StorageInfo: _reduce_place,
        }

    def _size(self, size: torch.Size | None) -> torch.Size | None:
        return self._sizes.setdefault(size, size)

    def _chunk(self, chunk: ChunkStorageMetadata) -> _Reduced:
        return _reduced(ChunkStorageMetadata, {"offsets": self._size(chunk.offsets), "sizes": self._size(chunk.sizes)})

    def _index(self, index: MetadataIndex) -> _Reduced:
        return _reduced(MetadataIndex, {"fqn": index.fqn, "offset": self._size(index.offset), "index": index.index})

    def _tensor(self, tensor: TensorStorageMetadata) -> _Reduced:
        facts = tensor.properties
        key = (facts.dtype, facts.layout, facts.requires_grad, facts.memory_format, facts.pin_memory)
        return _reduced(
            TensorStorageMetadata,
            {
                "properties": self._properties.setdefault(key, facts),
                "size": self._size(tensor.size),
                "chunks": [self._chunks.setdefault((chunk.offsets, chunk.sizes), chunk) for chunk in tensor.chunks],
            },
        )


def _reduce_place(place: _StorageInfo) -> _Reduced:
    state = dict(vars(place))
    if state.get("transform_descriptors") is None:
        state.pop("transform_descriptors", None)
    return _reduced(_StorageInfo, state)


def _reduced(kind: type, state: dict[str, object]) -> _Reduced:
    """What ``object.__reduce_ex__(2)`` gives for an object with just a ``__dict__``."""
    return copyreg.__newobj__, (kind,), state  # type: ignore[attr-defined]  # what pickle itself calls
