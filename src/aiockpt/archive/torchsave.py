"""Writing DCP items without torch.save: head, the tensor's own memory, tail.

One job: which tensors can be written so, and their frames. A frame's form depends on the dtype and the number
of dimensions; before a form is first used in a process it is compared with what the installed torch writes.
Where that differs (another torch, another storage alignment), frames are cut from torch's own output instead:
slower, as right.
"""

from __future__ import annotations

import ctypes
import io
from collections.abc import Sequence
from functools import cache
from typing import IO, Protocol, cast

import torch
from torch.serialization import get_crc32_options, set_crc32_options

from aiockpt.archive.frame import contiguous_frame, contiguous_stride, frame_of
from aiockpt.archive.tensor_pickle import picklable
from aiockpt.archive.torchload import locate
from aiockpt.crc import Bytes, crc32

_PAYLOAD_MAY_BE_COPIED = 64 * 1024
_PyBUF_WRITE = 0x200
_memory_at = ctypes.pythonapi.PyMemoryView_FromMemory
_memory_at.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
_memory_at.restype = ctypes.py_object


class Framed(Protocol):
    """What surrounds a payload: an item is the head, the payload, and the tail for the payload's CRC32."""

    @property
    def head(self) -> bytes:
        """The bytes before the payload."""

    @property
    def payload_nbytes(self) -> int:
        """The payload's length."""

    @property
    def item_nbytes(self) -> int:
        """The length of the whole item."""

    def tail(self, crc: int, /) -> bytes:
        """The bytes after a payload whose CRC32 is *crc*."""


def plain(tensor: torch.Tensor) -> bool:
    """Whether an item of this tensor says nothing but dtype, shape, strides and elements.

    All others (subclasses, quantised, sparse, conjugated, with Python attributes …) go through torch.save.
    """
    return (
        type(tensor) is torch.Tensor
        and tensor.layout is torch.strided
        and picklable(tensor.dtype)
        and not tensor.is_conj()
        and not tensor.is_neg()
        and not tensor.is_nested
        and not tensor._is_zerotensor()  # noqa: SLF001  # no public name for this question
        and not tensor.__getstate__()  # attributes; unlike __dict__, allocates nothing
    )


def framable(tensor: torch.Tensor) -> bool:
    """Whether an item of this tensor is a frame around its memory: plain, on the CPU, its elements dense.

    That includes views of larger storages: what lies around their elements is not written.
    """
    return plain(tensor) and tensor.is_cpu and (tensor.is_contiguous() or _is_dense(tensor))


def framed(tensor: torch.Tensor) -> tuple[Framed, memoryview]:
    """The frame around a `framable` tensor's memory, which holds no reference to it, and that memory.

    The latter is borrowed as by `storage_view`.
    """
    dtype, shape, nbytes = tensor.dtype, tensor.shape, tensor.nbytes
    view = _view(tensor, nbytes)
    if _form_agrees_with_torch(dtype, len(shape)):
        return frame_of(dtype, shape, tensor.stride(), nbytes, tensor.requires_grad), view
    fills_storage = tensor.untyped_storage().nbytes() == nbytes
    return CapturedFrame(tensor if fills_storage else tensor.clone()), view


def row_major_frame(tensor: torch.Tensor) -> Framed | None:
    """The frame around a row-major copy of a `plain` tensor, made without the copy; None if only torch can."""
    if not _form_agrees_with_torch(tensor.dtype, tensor.dim()):
        return None
    stride = contiguous_stride(tensor.shape)
    return frame_of(tensor.dtype, tensor.shape, stride, tensor.nbytes, tensor.requires_grad)


def item_nbytes(dtype: torch.dtype, shape: Sequence[int]) -> int:
    """The length of the item that `framed` makes of a row-major tensor.

    Raises:
        KeyError: a dtype that `framable` refuses.
    """
    return contiguous_frame(dtype, tuple(shape)).item_nbytes


def storage_view(tensor: torch.Tensor) -> memoryview:
    """The bytes of a dense CPU tensor's elements, writable, in the order in which they lie in memory.

    The view borrows: the caller keeps the tensor alive, and its storage unresized, for as long as the view or
    anything made from it lives. Writing through it is not seen by autograd's version counter.

    Raises:
        ValueError: the elements are not dense in memory, or not in host memory.
    """
    nbytes = tensor.nbytes
    if not tensor.is_contiguous() and not _is_dense(tensor):
        raise ValueError("a view of bytes needs a tensor whose elements lie densely in memory")
    if not tensor.is_cpu or tensor._is_zerotensor():  # noqa: SLF001  # no public name for this question
        raise ValueError("a view of bytes needs a tensor in host memory")
    return _view(tensor, nbytes)


def _view(tensor: torch.Tensor, nbytes: int) -> memoryview:
    """So much memory from a tensor's first element on."""
    if nbytes == 0:
        return memoryview(bytearray())
    view: memoryview = _memory_at(tensor.data_ptr(), nbytes, _PyBUF_WRITE)
    return view


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether the elements fill a block of memory without gap or overlap, in some order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 0:
            return True
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


class CapturedFrame:
    """A frame cut from what torch.save itself writes; its CRCs are torch's, taken when the frame was made.

    Attributes:
        head, payload_nbytes, item_nbytes: as in `Framed`.
    """

    __slots__ = ("_tail", "head", "item_nbytes", "payload_nbytes")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.payload_nbytes = tensor.nbytes
        writes = _Writes(leave_out=tensor.nbytes)
        torch.save(tensor, cast("IO[bytes]", writes))
        self.head, self._tail = writes.around_payload()
        self.item_nbytes = len(self.head) + self.payload_nbytes + len(self._tail)

    def tail(self, crc: int, /) -> bytes:  # noqa: ARG002  # the recorded CRC is torch's
        """The bytes after the payload."""
        return self._tail


class _Writes:
    """A stream that keeps what torch.save writes, but for one large payload, which torch hands over whole."""

    def __init__(self, leave_out: int) -> None:
        self._leave_out = leave_out
        self._before = io.BytesIO()
        self._after = self._before

    def write(self, data: Bytes) -> int:
        if len(data) == self._leave_out > _PAYLOAD_MAY_BE_COPIED and self._after is self._before:
            self._after = io.BytesIO()
        else:
            self._after.write(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def around_payload(self) -> tuple[bytes, bytes]:
        """Head and tail."""
        before = self._before.getvalue()
        if self._after is not self._before:
            return before, self._after.getvalue()
        start = locate(before).payload_offset
        return before[:start], before[start + self._leave_out :]


@cache
def _form_agrees_with_torch(dtype: torch.dtype, ndim: int) -> bool:
    """Whether the installed torch writes such a tensor as we do, tried once on a small one.

    torch's CRC option is a setting that others see too: it is touched only where somebody has switched it
    off.
    """
    shape = (3, *[1] * (ndim - 1)) if ndim else ()
    nbytes = (3 if ndim else 1) * dtype.itemsize
    probe = torch.zeros(nbytes, dtype=torch.uint8).view(dtype).reshape(shape)
    buffer = io.BytesIO()
    had_crc = get_crc32_options()
    try:
        if not had_crc:
            set_crc32_options(True)
        torch.save(probe, buffer)
    finally:
        if not had_crc:
            set_crc32_options(False)
    ours = frame_of(dtype, probe.shape, probe.stride(), nbytes, False)
    payload = bytes(nbytes)
    return buffer.getvalue() == ours.head + payload + ours.tail(crc32(payload))
