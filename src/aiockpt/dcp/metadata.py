"""A checkpoint's ``.metadata``: a pickle, loaded without letting it run code, and checked before it is believed.

``unpickling`` constructs only the types that real checkpoints hold. What the metadata says of places is checked here to
stay inside the checkpoint.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from aiockpt.crc import crc32
from aiockpt.dcp.collector import without_collector
from aiockpt.dcp.pickling import pickled
from aiockpt.dcp.unpickling import SafeUnpickler
from aiockpt.errors import MetadataError

#: What follows the pickle in our metadata, after its CRC32 in hexadecimal digits. As four bytes it would make the CRC32
#: of the whole the same for all metadata of one length, and who compares objects by that would take one for another.
_TRAILER = b"aiockpt crc32"
_CRC_BYTES = 8

#: Far above S3's largest object; offsets and ends stay within 63 bits.
_MAX_OBJECT_BYTES = 1 << 62


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
        pickled = _intact(data)
        loaded = without_collector(SafeUnpickler(pickled, where, allowed).load)
        return _checked(loaded, where, len(pickled))
    except MetadataError as exc:
        if where not in str(exc):
            exc.args = (f"{where}: {exc}",)
        raise
    except Exception as exc:
        raise MetadataError(f"{where} is damaged or no checkpoint metadata: {type(exc).__name__}: {exc}") from exc


def _intact(data: bytes) -> bytes:
    """The pickle, compared with its CRC32 if that follows it."""
    if not data.endswith(_TRAILER) or len(data) <= (length := _CRC_BYTES + len(_TRAILER)):
        return data
    if data[-length : -len(_TRAILER)] != b"%08x" % crc32(memoryview(data)[:-length]):
        raise MetadataError("the bytes do not match their CRC32: damaged; load an older checkpoint")
    return data[:-length]


def _checked(loaded: Any, where: str, pickle_nbytes: int) -> Metadata:
    if not isinstance(loaded, Metadata) or not isinstance(loaded.state_dict_metadata, dict):
        raise MetadataError(f"{where} holds {type(loaded).__name__}, not the metadata of a checkpoint")
    chunks = 0
    for name, value in loaded.state_dict_metadata.items():
        if isinstance(value, TensorStorageMetadata):
            if not isinstance(value.properties.dtype, torch.dtype):
                raise MetadataError(f"{where}: {_told(name)} has no dtype")
            chunks += len(value.chunks)
    if chunks > pickle_nbytes:  # one long list that all tensors share: whoever goes through them would not come back
        raise MetadataError(f"{where}: its tensors have {chunks} chunks, more than it has bytes")
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
        raise MetadataError(f"{where}: the path {_told(path)} leads out of the checkpoint")
    if not (type(offset) is type(length) is int and 0 <= offset <= offset + length <= _MAX_OBJECT_BYTES):
        raise MetadataError(f"{where}: {_told(path)} has a place that cannot be: {_told(offset)}, {_told(length)}")


def _told(value: object) -> str:
    """A value for a message: of strings and numbers only, since others can be nested without end."""
    return reprlib.repr(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


@lru_cache(maxsize=4096)
def _is_inside(path: str) -> bool:
    """Whether a key made of the checkpoint's and this path is one, and below the checkpoint's."""
    if any("\ud800" <= char <= "\udfff" for char in path):  # has no bytes in UTF-8
        return False
    return bool(path) and not path.startswith("/") and ".." not in path.split("/") and "\0" not in path


def dump_metadata(metadata: Metadata) -> bytes:
    """The bytes of a ``.metadata``, as stock DCP reads them.

    Equal sizes, offsets, chunks and tensor properties are shared by who loads them; see ``pickling``.

    Behind the pickle follow its CRC32 and a mark: unpicklers stop before them. Shared parts make that necessary, since
    a flipped bit could move a chunk and its place alike, and then nothing would contradict it.
    """
    data = without_collector(lambda: pickled(metadata))
    return data + b"%08x" % crc32(data) + _TRAILER
