"""The safetensors file layout: its JSON header from and to tensor entries.

One job: the header's bytes. A file is an 8-byte little-endian length, that many bytes of JSON padded with
spaces to a multiple of 8, then the tensors' bytes without gaps. It knows nothing of files or tensors' memory.
Written headers are those of the safetensors package (0.8), but for the order of metadata: that package's is
random, ours is the mapping's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from aiockpt.archive.surprise import Surprise, require

Entry = tuple[str, torch.dtype, Sequence[int]]

LENGTH_NBYTES = 8
MAX_HEADER_NBYTES = 100_000_000  # the package's own cap
_METADATA = "__metadata__"
_FLOAT4 = "F4"  # two numbers a byte: torch counts the pairs, safetensors the numbers

# In the order of the package's own enumeration; tensors of the later ones come first in a file.
# fmt: off
_NAMES = (
    ("BOOL", "bool"), (_FLOAT4, "float4_e2m1fn_x2"), ("U8", "uint8"), ("I8", "int8"),
    ("F8_E5M2", "float8_e5m2"), ("F8_E4M3", "float8_e4m3fn"), ("F8_E8M0", "float8_e8m0fnu"),
    ("F8_E4M3FNUZ", "float8_e4m3fnuz"), ("F8_E5M2FNUZ", "float8_e5m2fnuz"),
    ("I16", "int16"), ("U16", "uint16"), ("F16", "float16"), ("BF16", "bfloat16"),
    ("I32", "int32"), ("U32", "uint32"), ("F32", "float32"),
    ("C64", "complex64"), ("F64", "float64"), ("I64", "int64"), ("U64", "uint64"),
)
# fmt: on
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, attr) for name, attr in _NAMES if hasattr(torch, attr)}
DTYPE_NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
_RANKS = {dtype: rank for rank, dtype in enumerate(DTYPE_NAMES)}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file; its bytes are ``[start, end)`` counted from the end of the header."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A file's header: where its data starts in the file, its tensors in the order of their bytes."""

    data_offset: int
    tensors: tuple[StoredTensor, ...]
    metadata: dict[str, str]


def file_order(entries: Iterable[Entry]) -> list[Entry]:
    """The entries in the order of their tensors' bytes in the file: larger dtypes first, then by name."""
    return sorted(entries, key=lambda entry: (-_RANKS[entry[1]], entry[0]))


def build_header(entries: Sequence[Entry], metadata: Mapping[str, str] | None) -> bytes:
    """A file's first bytes, up to the bytes of these row-major tensors in `file_order`.

    Raises:
        ValueError: a dtype that the format lacks, a name used twice or reserved, or a header above the
        format's cap.
    """
    unknown = {str(dtype) for _, dtype, _ in entries if dtype not in DTYPE_NAMES}
    if unknown:
        raise ValueError(f"safetensors has no dtype for {', '.join(sorted(unknown))}")
    names = {name for name, _, _ in entries}
    if len(names) < len(entries) or _METADATA in names:
        raise ValueError(f"tensor names must be unique and not {_METADATA!r}")

    content: dict[str, Any] = {} if metadata is None else {_METADATA: dict(metadata)}
    end = 0
    for name, dtype, shape in file_order(entries):
        start, end = end, end + prod(shape) * dtype.itemsize
        content[name] = {
            "dtype": DTYPE_NAMES[dtype],
            "shape": _stored_shape(dtype, shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_NBYTES:
        raise ValueError(f"a header of {len(text)} bytes is above the format's cap of {MAX_HEADER_NBYTES}")
    return len(text).to_bytes(LENGTH_NBYTES, "little") + text


def _stored_shape(dtype: torch.dtype, shape: Sequence[int]) -> list[int]:
    if DTYPE_NAMES[dtype] != _FLOAT4:
        return list(shape)
    if not shape:
        raise ValueError("safetensors cannot hold half a byte: a 0-d float4 tensor")
    return [*shape[:-1], shape[-1] * 2]


def data_offset(prefix: bytes) -> int:
    """Where a file's data starts, from its first 8 bytes: so many bytes `parse_header` needs.

    Raises:
        Surprise: not a safetensors file, or a header above the format's cap.
    """
    require(len(prefix) >= LENGTH_NBYTES, "the file is shorter than a header's length")
    nbytes = int.from_bytes(prefix[:LENGTH_NBYTES], "little")
    require(nbytes <= MAX_HEADER_NBYTES, "the header is longer than the format allows")
    return LENGTH_NBYTES + nbytes


def parse_header(prefix: bytes) -> Header:
    """The header in a file's first bytes; bytes after it are ignored.

    Raises:
        Surprise: it is cut short, or breaks one of the format's rules: names are unique, the tensors' bytes
        follow one
            another from 0 without gap or overlap, and their lengths are those that dtype and shape say.
    """
    end = data_offset(prefix)
    require(len(prefix) >= end, "the header is cut short")
    content = _strict_json(prefix[LENGTH_NBYTES:end])
    metadata = content.pop(_METADATA, {})
    require(
        type(metadata) is dict and all(type(v) is str for v in metadata.values()),
        "the metadata are not strings",
    )
    tensors = sorted((_stored_tensor(*item) for item in content.items()), key=lambda tensor: (tensor.start, tensor.end))
    filled = 0
    for tensor in tensors:
        require(tensor.start == filled, "the tensors' bytes leave a gap or overlap")
        filled = tensor.end
    return Header(end, tuple(tensors), metadata)


def _strict_json(text: bytes) -> dict[str, Any]:
    require(text.startswith(b"{"), "the header is not a JSON object")
    try:
        content = json.loads(text.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as exc:
        raise Surprise("the header is not sound JSON") from exc
    assert isinstance(content, dict)
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    require(len(content) == len(pairs), "the header has a name twice")
    return content


def _stored_tensor(name: str, facts: Any) -> StoredTensor:
    require(
        type(facts) is dict and facts.keys() == {"dtype", "shape", "data_offsets"},
        "an entry lacks facts, or has others",
    )
    shape, offsets, dtype_name = facts["shape"], facts["data_offsets"], facts["dtype"]
    require(_is_counts(shape) and _is_counts(offsets) and len(offsets) == 2, "an entry's numbers make no sense")
    require(type(dtype_name) is str and dtype_name in DTYPES, "an entry has a dtype that torch lacks")
    dtype = DTYPES[dtype_name]
    if dtype_name == _FLOAT4:
        require(shape and shape[-1] % 2 == 0, "an entry ends within a byte")
        shape = [*shape[:-1], shape[-1] // 2]
    start, end = offsets
    require(end - start == prod(shape) * dtype.itemsize, "an entry's length is not what its dtype and shape say")
    return StoredTensor(name, dtype, tuple(shape), start, end)


def _is_counts(value: Any) -> bool:
    return type(value) is list and all(type(number) is int and 0 <= number < 1 << 63 for number in value)
