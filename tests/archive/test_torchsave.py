from __future__ import annotations

import gc
import io
import mmap
import zipfile
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aiockpt.archive import torchsave
from aiockpt.archive.frame import frame_of
from aiockpt.archive.torchsave import (
    CapturedFrame,
    framable,
    framed,
    item_nbytes,
    row_major_frame,
    storage_view,
)
from aiockpt.crc import crc32
from archive.torch_items import DTYPES, SHAPES, saved_by_torch, saved_by_us, tensor_of

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_items_are_byte_for_byte_those_of_torch(dtype: torch.dtype) -> None:
    for shape in SHAPES:
        tensor = tensor_of(dtype, shape)
        assert framable(tensor)
        assert not isinstance(framed(tensor)[0], CapturedFrame)
        assert saved_by_us(tensor) == saved_by_torch(tensor), shape
        assert item_nbytes(dtype, shape) == framed(tensor)[0].item_nbytes == len(saved_by_us(tensor))


@given(st.lists(st.integers(0, 7), max_size=6), st.randoms(use_true_random=False), st.booleans())
def test_any_layout_of_a_dense_tensor_is_written_as_torch_writes_it(shape: list[int], rng: object, grad: bool) -> None:
    order = list(range(len(shape)))
    rng.shuffle(order)  # type: ignore[attr-defined]
    tensor = tensor_of(torch.float32, tuple(shape)).permute(order).requires_grad_(grad)
    assert framable(tensor)
    assert saved_by_us(tensor) == saved_by_torch(tensor)


@given(st.integers(0, 3 * 64))
def test_every_residue_of_the_payload_length(nbytes: int) -> None:
    tensor = tensor_of(torch.uint8, (nbytes,))
    assert saved_by_us(tensor) == saved_by_torch(tensor)


def test_a_payload_that_looks_like_a_descriptor_differs_in_the_fingerprint_only() -> None:
    tensor = torch.frombuffer(bytearray(b"PK\x07\x08" + bytes(60)), dtype=torch.uint8).clone()
    ours, theirs = (zipfile.ZipFile(io.BytesIO(item)) for item in (saved_by_us(tensor), saved_by_torch(tensor)))
    assert ours.testzip() is None
    different = [name for name in theirs.namelist() if ours.read(name) != theirs.read(name)]
    assert different == ["archive/.data/serialization_id"]
    assert len(saved_by_us(tensor)) == len(saved_by_torch(tensor))


class _Nowhere(io.RawIOBase):
    """Keeps small writes and the large ones' lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = [b""]

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        if len(data) > 1 << 20:
            self.parts.append(b"")
        else:
            self.parts[-1] += data
        return len(data)


@pytest.fixture
def without_crc() -> Iterator[None]:
    torch.serialization.set_crc32_options(False)
    yield
    torch.serialization.set_crc32_options(True)


def _without_crcs_and_id(tail: bytes, payload_nbytes: int) -> bytearray:
    """The tail with every CRC and the fingerprint set to zero."""
    masked = bytearray(tail)
    at = -1
    while (at := tail.find(b"PK\x07\x08", at + 1)) >= 0:
        masked[at + 4 : at + 8] = bytes(4)
    while (at := tail.find(b"PK\x01\x02", at + 1)) >= 0:
        masked[at + 16 : at + 20] = bytes(4)
    at = tail.index(b"15728199511854643026") + 20
    masked[at : at + 20] = bytes(20)
    return masked


@pytest.mark.usefixtures("without_crc")
@pytest.mark.parametrize(
    "nbytes",
    [
        (1 << 32) - 64 * 1024,
        (1 << 32) - 64 * 1024 - 1,
        (1 << 32) - 1800,
        *range((1 << 32) - 1300, (1 << 32) - 600, 41),
        (1 << 32) - 2,
        (1 << 32) - 1,
        1 << 32,
        (1 << 32) + 63,
        (1 << 33) + 5,
    ],
)
def test_items_around_and_above_4_gib_have_torchs_zip64_fields(nbytes: int) -> None:
    # Without its CRCs torch never reads the payload, so that an untouched anonymous mapping costs no memory.
    tensor = torch.frombuffer(mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE), dtype=torch.uint8)
    written = _Nowhere()
    torch.save(tensor, cast("IO[bytes]", written))
    head, tail = written.parts
    framed = frame_of(torch.uint8, (nbytes,), (1,), nbytes, False)
    ours = framed.tail(0x12345678)
    assert len(framed.head) == len(head)
    assert framed.item_nbytes == len(head) + nbytes + len(tail) == item_nbytes(torch.uint8, (nbytes,))
    assert _without_crcs_and_id(framed.head + b"15728199511854643026" + bytes(20), 0) == _without_crcs_and_id(
        head + b"15728199511854643026" + bytes(20), 0
    )
    assert _without_crcs_and_id(ours, nbytes) == _without_crcs_and_id(tail, nbytes)
    assert ours[4:8] == (0x12345678).to_bytes(4, "little")


NOT_FRAMABLE = {
    "scattered": lambda: torch.zeros(8)[::2],
    "expanded": lambda: torch.zeros(1).expand(4),
    "a parameter": lambda: torch.nn.Parameter(torch.zeros(2)),
    "a subclass": lambda: torch.Tensor._make_subclass(type("Sub", (torch.Tensor,), {}), torch.zeros(2)),
    "sparse": lambda: torch.zeros(2).to_sparse(),
    "quantised": lambda: torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.qint8),
    "conjugated": lambda: torch.zeros(2, dtype=torch.complex64).conj(),
    "negated": lambda: torch.zeros(2, dtype=torch.complex64).conj().imag,
    "without memory": lambda: torch._efficientzerotensor(3),
    "on meta": lambda: torch.zeros(2, device="meta"),
}


@pytest.mark.parametrize("make", NOT_FRAMABLE.values(), ids=NOT_FRAMABLE.keys())
@pytest.mark.filterwarnings("ignore")
def test_other_tensors_are_not_framable(make: object) -> None:
    assert not framable(make())  # type: ignore[operator]


VIEWS = {
    "the start of a storage": lambda: torch.arange(8.0)[:4],
    "an offset": lambda: torch.arange(8.0)[4:],
    "an empty view of a storage": lambda: torch.arange(8.0)[:0],
    "transposed rows": lambda: torch.arange(24.0).reshape(6, 4).narrow(0, 1, 3).t(),
}


def as_saved_alone(view: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.save(view.clone(memory_format=torch.preserve_format), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS.keys())
def test_a_dense_view_is_written_without_what_lies_around_it(make: Callable[[], torch.Tensor]) -> None:
    view = make()
    assert framable(view)
    surround, payload = framed(view)
    assert surround.head + bytes(payload) + surround.tail(crc32(payload)) == as_saved_alone(view)


@pytest.mark.usefixtures("fresh_forms", "aligned_to_128")
@pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS.keys())
def test_a_dense_view_is_written_alone_in_torchs_own_words_too(make: Callable[[], torch.Tensor]) -> None:
    view = make()
    surround, payload = framed(view)
    item = surround.head + bytes(payload) + surround.tail(0)
    assert item == as_saved_alone(view)


def test_row_major_frames_fit_copies_of_scattered_tensors() -> None:
    tensor = torch.arange(24.0).reshape(4, 6)[:, ::2]
    surround, of_copy = row_major_frame(tensor), framed(tensor.contiguous())[0]
    assert surround is not None
    assert (surround.head, surround.tail(7)) == (of_copy.head, of_copy.tail(7))


@pytest.mark.usefixtures("fresh_forms", "aligned_to_128")
def test_no_row_major_frame_where_torch_has_to_write() -> None:
    assert row_major_frame(torch.zeros(3)) is None


def test_a_tensor_with_attributes_is_not_framable() -> None:
    tensor = torch.zeros(2)
    tensor.note = "kept by torch.save"  # type: ignore[attr-defined]
    assert not framable(tensor)


@pytest.fixture
def fresh_forms() -> Iterator[None]:
    torchsave._form_agrees_with_torch.cache_clear()
    yield
    torchsave._form_agrees_with_torch.cache_clear()


@pytest.fixture
def aligned_to_128() -> Iterator[None]:
    config = torch.utils.serialization.config.save
    config.storage_alignment = 128
    yield
    config.storage_alignment = 64


@pytest.mark.usefixtures("fresh_forms", "aligned_to_128")
@pytest.mark.parametrize("shape", [(), (0,), (7,), (300, 3), (1 << 15,), (1 << 17,)])
def test_another_dialect_of_torch_is_captured_from_torch(shape: tuple[int, ...]) -> None:
    tensor = tensor_of(torch.float32, shape)
    assert isinstance(framed(tensor)[0], CapturedFrame)
    assert saved_by_us(tensor) == saved_by_torch(tensor)
    assert framed(tensor)[0].item_nbytes == len(saved_by_us(tensor))


@pytest.mark.usefixtures("fresh_forms", "without_crc")
def test_the_crc_option_neither_changes_our_items_nor_is_changed() -> None:
    item = saved_by_us(torch.ones(3))
    assert torch.serialization.get_crc32_options() is False
    torch.serialization.set_crc32_options(True)
    assert item == saved_by_torch(torch.ones(3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_view_is_the_tensors_own_memory(dtype: torch.dtype) -> None:
    tensor = tensor_of(dtype, (4, 2))
    view = storage_view(tensor)
    assert (view.format, view.nbytes, view.readonly) == ("B", 8 * dtype.itemsize, False)
    view[:] = bytes(len(view))
    assert not tensor.view(torch.uint8).any()


def test_views_of_empty_strided_offset_and_grad_tensors() -> None:
    assert len(storage_view(torch.zeros(0, 3))) == 0
    base = torch.arange(6, dtype=torch.uint8)
    assert bytes(storage_view(base.view(2, 3).t())) == bytes(range(6))
    assert bytes(storage_view(base[2:4])) == b"\x02\x03"
    assert len(storage_view(torch.zeros(2, requires_grad=True))) == 8
    gc.collect()


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(1).expand(4), torch.zeros(4, 4)[:, :2], torch.zeros(4)[::2], torch.zeros(2, device="meta")],
)
def test_no_view_of_what_is_not_dense_host_memory(tensor: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="a view of bytes needs"):
        storage_view(tensor)


def test_what_stock_torch_loads_is_bit_exact() -> None:
    tensor = tensor_of(torch.bfloat16, (70, 3)).t()
    loaded = torch.load(io.BytesIO(saved_by_us(tensor)), weights_only=True)
    assert loaded.stride() == tensor.stride()
    assert torch.equal(loaded.view(torch.int16), tensor.view(torch.int16))
    assert zipfile.ZipFile(io.BytesIO(saved_by_us(tensor))).testzip() is None
    assert crc32(storage_view(tensor)) == crc32(storage_view(loaded))
