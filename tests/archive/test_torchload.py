from __future__ import annotations

import io
import random
import zipfile
from math import prod
from typing import TYPE_CHECKING

import pytest
import torch

from aiockpt.archive.surprise import StridedPayload, Surprise
from aiockpt.archive.torchload import common_payload, confirm, dimension_order, locate, order_of, payload_of, predict
from aiockpt.archive.torchsave import item_nbytes, storage_view
from aiockpt.crc import crc32
from aiockpt.errors import ChecksumMismatch
from archive.torch_items import DTYPES, SHAPES, rezipped, saved_by_torch, tensor_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _payload(item: bytes, tensor: torch.Tensor) -> bytes:
    return bytes(payload_of(memoryview(item), tensor.dtype, tensor.shape)[0])


def _confirm(item: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> int | None:
    start, nbytes = locate(item).payload_offset, prod(shape) * dtype.itemsize
    return confirm(
        item[:start],
        item[start + nbytes :],
        item_nbytes=len(item),
        payload_offset=start,
        payload_nbytes=nbytes,
        dtype=dtype,
        shape=shape,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_torchs_items_are_predicted_confirmed_and_located(dtype: torch.dtype) -> None:
    for shape in SHAPES:
        tensor = tensor_of(dtype, shape)
        item = saved_by_torch(tensor)
        assert predict(len(item), dtype, shape) == locate(item).payload_offset
        assert _confirm(item, dtype, shape) == crc32(storage_view(tensor))
        assert _payload(item, tensor) == bytes(storage_view(tensor))
        common = common_payload(memoryview(item), dtype, shape)
        assert common is not None
        assert common == bytes(storage_view(tensor))


@pytest.mark.parametrize(("dtype", "shape"), [(torch.int32, (3, 5)), (torch.float32, (5, 3)), (torch.float32, (15,))])
def test_an_item_of_the_same_length_is_another_tensors(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    item = saved_by_torch(tensor_of(torch.float32, (3, 5)))
    assert common_payload(memoryview(item), dtype, shape) is None
    assert common_payload(memoryview(item)[:-1], torch.float32, (3, 5)) is None


@pytest.mark.parametrize("write", [saved_by_torch, lambda tensor: rezipped(saved_by_torch(tensor))])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2), (2, 1, 0)])
@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 4, 5), (3, 1, 1)])
def test_the_order_of_dimensions(
    write: Callable[[torch.Tensor], bytes], order: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    back = sorted(range(3), key=order.__getitem__)
    tensor = torch.zeros([shape[dim] for dim in order]).permute(back)
    item = write(tensor)
    head = item[: locate(item).payload_offset]
    found = dimension_order(head, tensor.dtype, shape)
    assert tensor.permute(found).is_contiguous()
    assert order_of(shape, tensor.stride()) == found or tensor.is_contiguous()


def test_no_order_of_what_is_not_dense_or_another_tensor() -> None:
    item = saved_by_torch(torch.zeros(5, 6)[:, ::2])
    head = item[: locate(item).payload_offset]
    for dtype, shape in [(torch.float32, (5, 3)), (torch.float64, (5, 3)), (torch.float32, (3, 5))]:
        with pytest.raises(Surprise):
            dimension_order(head, dtype, shape)
    with pytest.raises(Surprise):
        dimension_order(head[:50], torch.float32, (5, 3))


def test_nothing_is_predicted_for_other_lengths_or_dtypes() -> None:
    assert predict(item_nbytes(torch.float32, (3,)) + 1, torch.float32, (3,)) is None
    assert predict(1500, torch.qint8, (3,)) is None


def _without_crc(tensor: torch.Tensor) -> bytes:
    torch.serialization.set_crc32_options(False)
    try:
        return saved_by_torch(tensor)
    finally:
        torch.serialization.set_crc32_options(True)


def _aligned_to_4096(tensor: torch.Tensor) -> bytes:
    config = torch.utils.serialization.config.save
    config.storage_alignment = 4096
    try:
        return saved_by_torch(tensor)
    finally:
        config.storage_alignment = 64


def _reordered(tensor: torch.Tensor) -> bytes:
    """Records as torch 1.x ordered them: version first, no byteorder, no newer records."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved_by_torch(tensor))) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in ("version", "data.pkl", "data/0"):
            new.writestr(f"old.name/{name}", old.read(f"archive/{name}"))
    return buffer.getvalue()


DIALECTS: dict[str, Callable[[torch.Tensor], bytes]] = {
    "with gradient": lambda tensor: saved_by_torch(tensor.clone().requires_grad_()),
    "parameter": lambda tensor: saved_by_torch(torch.nn.Parameter(tensor.clone())),
    "without CRCs": _without_crc,
    "other alignment": _aligned_to_4096,
    "Python's zipfile": lambda tensor: rezipped(saved_by_torch(tensor)),
    "another archive name": lambda tensor: rezipped(saved_by_torch(tensor), name="a-much-longer.name"),
    "old order": _reordered,
}


@pytest.mark.parametrize("shape", [(), (3,), (0, 2), (300, 7), (2, 3, 4, 5)])
@pytest.mark.parametrize("write", DIALECTS.values(), ids=DIALECTS.keys())
def test_other_dialects_are_read(write: Callable[[torch.Tensor], bytes], shape: tuple[int, ...]) -> None:
    tensor = tensor_of(torch.float32, shape).nan_to_num()
    item = write(tensor)
    assert _payload(item, tensor) == bytes(storage_view(tensor))
    assert _confirm(item, torch.float32, shape) == (None if write is _without_crc else crc32(storage_view(tensor)))


def test_an_item_that_torch_saved_to_a_path(tmp_path: Path) -> None:
    tensor = tensor_of(torch.int64, (9, 9))
    torch.save(tensor, tmp_path / "my_checkpoint.pt")
    assert _payload((tmp_path / "my_checkpoint.pt").read_bytes(), tensor) == bytes(storage_view(tensor))


def test_strides_are_reported_where_they_matter() -> None:
    tensor = tensor_of(torch.float32, (3, 5)).t()
    item = saved_by_torch(tensor)
    with pytest.raises(StridedPayload) as caught:
        _confirm(item, torch.float32, (5, 3))
    assert caught.value.stride == (1, 5)
    assert caught.value.crc32 == crc32(storage_view(tensor))
    degenerate = tensor_of(torch.float32, (1, 5)).t()
    assert _payload(saved_by_torch(degenerate), degenerate) == bytes(storage_view(degenerate))


REFUSED: dict[str, Callable[[], bytes]] = {
    "another dtype": lambda: saved_by_torch(torch.zeros(4, dtype=torch.int32)),
    "another shape": lambda: saved_by_torch(torch.zeros(2, 2)),
    "a view": lambda: saved_by_torch(torch.zeros(8)[:4]),
    "a view at an offset": lambda: saved_by_torch(torch.zeros(5)[1:]),
    "a dict": lambda: saved_by_torch({"a": torch.zeros(4)}),
    "a list of two": lambda: saved_by_torch([torch.zeros(4), torch.zeros(4)]),
    "not a tensor": lambda: saved_by_torch(4),
    "conjugated": lambda: saved_by_torch(torch.zeros(2, dtype=torch.complex64).conj()),
    "compressed": lambda: rezipped(saved_by_torch(torch.zeros(4)), compression=zipfile.ZIP_DEFLATED),
    "legacy": lambda: _legacy(torch.zeros(4)),
    "with text after it": lambda: saved_by_torch(torch.zeros(4)) + b"x",
    "nothing": lambda: b"",
    "noise": lambda: random.Random(1).randbytes(1529),
}


def _legacy(tensor: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensor, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED.keys())
def test_everything_else_is_a_surprise(make: Callable[[], bytes]) -> None:
    with pytest.raises(Surprise):
        payload_of(memoryview(make()), torch.float32, (4,))


def test_big_endian_items_are_a_surprise() -> None:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved_by_torch(torch.zeros(4)))) as old,
        zipfile.ZipFile(buffer, "w") as new,
    ):
        for name in old.namelist():
            new.writestr(name, b"big" if name.endswith("byteorder") else old.read(name))
    with pytest.raises(Surprise, match="little-endian"):
        payload_of(memoryview(buffer.getvalue()), torch.float32, (4,))


def test_a_flipped_payload_bit_is_a_checksum_mismatch() -> None:
    item = bytearray(saved_by_torch(torch.ones(100)))
    item[len(item) // 2] ^= 1
    with pytest.raises(ChecksumMismatch):
        payload_of(memoryview(item), torch.float32, (100,))


def _read_or_none(item: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> bytes | None:
    try:
        return bytes(payload_of(memoryview(item), dtype, shape)[0])
    except (Surprise, ChecksumMismatch):
        return None


@pytest.mark.parametrize("write", [saved_by_torch, *DIALECTS.values()], ids=["common", *DIALECTS.keys()])
def test_corrupt_items_give_the_right_answer_or_none(write: Callable[[torch.Tensor], bytes]) -> None:
    tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    expected = bytes(storage_view(tensor))
    item = write(tensor)
    start = locate(item).payload_offset
    rng = random.Random(7)
    for cut in range(0, len(item), max(1, len(item) // 400)):
        assert _read_or_none(item[:cut], tensor.dtype, (2, 3)) is None
    for at in range(len(item)):
        corrupt = bytearray(item)
        corrupt[at] ^= 1 << rng.randrange(8)
        answer = _read_or_none(bytes(corrupt), tensor.dtype, (2, 3))
        unproved = write is _without_crc and start <= at < start + len(expected)
        assert answer in (None, expected) or unproved, at


def test_random_edits_never_crash() -> None:
    rng = random.Random(3)
    items = [write(torch.arange(4, dtype=torch.float32)) for write in DIALECTS.values()]
    for _ in range(3000):
        item = bytearray(rng.choice(items))
        for _ in range(rng.randrange(1, 6)):
            start = rng.randrange(len(item))
            item[start : start + rng.randrange(9)] = rng.randbytes(rng.randrange(9))
        _read_or_none(bytes(item), torch.float32, (4,))


def test_a_head_that_ends_before_the_payload() -> None:
    item = saved_by_torch(torch.zeros(4))
    start = locate(item).payload_offset
    assert locate(item[:start]).payload_offset == start
    for cut in (0, 29, 200, start - 1):
        with pytest.raises(Surprise):
            locate(item[:cut])
