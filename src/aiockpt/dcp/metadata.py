"""A checkpoint's ``.metadata``: a pickle, loaded without letting it run code, and checked before it is believed.

Only the types that real checkpoints hold are constructed; any other name in the pickle is refused, naming it and the
way to allow it. What the metadata says of places is checked to stay inside the checkpoint.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from aiockpt.errors import MetadataError

FILE_NAME = ".metadata"

_ALLOWED: dict[str, frozenset[str]] = {
    "torch.distributed.checkpoint.metadata": frozenset({
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    }),
    "torch.distributed.checkpoint.filesystem": frozenset({"_StorageInfo"}),
    "torch.distributed._shard.sharded_tensor.metadata": frozenset({"MEM_FORMAT_ENCODING", "TensorProperties"}),
    "torch": frozenset({"Size", "device"} | {n for n, v in vars(torch).items() if isinstance(v, torch.dtype)}),
    "torch.serialization": frozenset({"_get_layout"}),
    "collections": frozenset({"OrderedDict"}),
    "builtins": frozenset({"bytearray", "complex", "frozenset", "set", "slice"}),
    "_codecs": frozenset({"encode"}),
    "pathlib": frozenset({"PosixPath", "PurePosixPath", "PureWindowsPath"}),
}  # fmt: skip


class _SafeUnpickler(pickle.Unpickler):
    """An unpickler that finds only what it was told of."""

    def __init__(self, data: bytes, where: str, allowed: Iterable[type]) -> None:
        super().__init__(io.BytesIO(data))
        self._where = where
        self._extra = {(kind.__module__, kind.__qualname__): kind for kind in allowed}

    def find_class(self, module: str, name: str) -> Any:
        """Called by pickle for every name."""
        if (found := self._extra.get((module, name))) is not None:
            return found
        if name in _ALLOWED.get(module, ()):
            return super().find_class(module, name)
        raise MetadataError(
            f"{self._where} names {module}.{name}, which checkpoints do not need: refused, as loading it could run "
            f"code. If you trust this checkpoint, pass allowed_metadata_types=[{name}] to the storage reader"
        )


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
        metadata = _SafeUnpickler(data, where, allowed).load()
    except MetadataError:
        raise
    except Exception as exc:
        raise MetadataError(f"{where} is damaged or no checkpoint metadata: {type(exc).__name__}: {exc}") from exc
    if not isinstance(metadata, Metadata) or not isinstance(metadata.state_dict_metadata, dict):
        raise MetadataError(f"{where} holds {type(metadata).__name__}, not the metadata of a checkpoint")
    for info in (metadata.storage_data or {}).values():
        _check_place(info, where)
    if getattr(metadata, "storage_meta", None) is None:
        metadata.storage_meta = StorageMeta()
    return metadata


def _check_place(info: Any, where: str) -> None:
    if not isinstance(info, _StorageInfo):
        raise MetadataError(f"{where}: storage data holds {type(info).__name__} instead of places in objects")
    path = info.relative_path
    if not isinstance(path, str) or path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise MetadataError(f"{where}: the path {path!r} leads out of the checkpoint")
    if not (isinstance(info.offset, int) and isinstance(info.length, int)) or min(info.offset, info.length) < 0:
        raise MetadataError(f"{where}: {path!r} has a place that cannot be: {info.offset}, {info.length}")


def dump_metadata(metadata: Metadata) -> bytes:
    """The bytes of a ``.metadata``, as stock DCP writes and reads them."""
    return pickle.dumps(metadata)
