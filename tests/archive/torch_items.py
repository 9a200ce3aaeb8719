"""Tensors of every kind, and items made of them by torch, by us and by others, for this folder's tests."""

from __future__ import annotations

import io
import zipfile
from math import prod

import torch

from aiockpt.archive.tensor_pickle import NAMED_DTYPES, STORAGE_NAMES
from aiockpt.archive.torchsave import framed
from aiockpt.crc import crc32

DTYPES = [*STORAGE_NAMES, *NAMED_DTYPES.values()]
# fmt: off
SHAPES = [
    (), (0,), (0, 3), (3, 0), (1,), (1, 1), (255,), (256,), (257,), (3, 5), (5, 1), (2, 3, 4), (2, 3, 4, 5),
    (1, 2, 1, 2, 1), (65535,), (65536,), (300, 70), (1, 70000),
    (0, 1 << 31), (0, (1 << 31) - 1), (0, 1 << 40),
]
# fmt: on


def tensor_of(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    nbytes = prod(shape) * dtype.itemsize
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (nbytes,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(shape)


def saved_by_torch(tensor: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    return buffer.getvalue()


def saved_by_us(tensor: torch.Tensor) -> bytes:
    frame, payload = framed(tensor)
    return frame.head + bytes(payload) + frame.tail(crc32(payload))


def rezipped(item: bytes, *, compression: int = zipfile.ZIP_STORED, name: str = "archive") -> bytes:
    """The same records in an archive that Python's zipfile wrote."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(item)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for record in old.namelist():
            new.writestr(record.replace("archive", name, 1), old.read(record))
    return buffer.getvalue()
