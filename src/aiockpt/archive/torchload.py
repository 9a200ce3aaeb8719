"""Reading DCP items without torch.load: predict where the payload lies, prove it by the bytes around it.

One job: place, form and CRC of an item's payload. An item in the form that torch 2.13 and this package write
is recognised by comparing its head and tail with the ones that we would write; any other stored archive of
one tensor (older torch, another archive name, no CRCs, Python's zipfile) is taken apart. What is not
understood raises `Surprise`: the caller falls back to ``torch.load(weights_only=True)`` on the whole item.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch

from aiockpt.archive.frame import Frame, contiguous_frame, contiguous_stride
from aiockpt.archive.surprise import StridedPayload, Surprise, require
from aiockpt.archive.tensor_pickle import picklable
from aiockpt.archive.tensor_unpickle import TensorFacts, tensor_facts
from aiockpt.archive.zip_directory import Ends, Entry, content_of, data_of, directory, end_of_data, local_at
from aiockpt.crc import Bytes, crc32
from aiockpt.errors import ChecksumMismatch

_PAYLOAD_NAME = b"/data/0"
_MAX_RECORDS_BEFORE_PAYLOAD = 64  # torch writes four


@dataclass(frozen=True, slots=True)
class Located:
    """Where an item's payload starts, as its local headers say; to be proved by `confirm`."""

    payload_offset: int


def predict(length: int, dtype: torch.dtype, shape: Sequence[int]) -> int | None:
    """The payload's offset in an item of *length* bytes, if that is the common form's length; else None."""
    frame = _common_frame(dtype, shape)
    return len(frame.head) if frame is not None and frame.item_nbytes == length else None


def _common_frame(dtype: torch.dtype, shape: Sequence[int]) -> Frame | None:
    return contiguous_frame(dtype, tuple(shape)) if picklable(dtype) else None


def _common_crc32(frame: Frame | None, head: bytes, tail: bytes) -> int | None:
    """The CRC32 that an item in the common form records for its payload; None if it is of another form."""
    if frame is None or frame.head != head or sys.byteorder != "little":
        return None
    recorded = int.from_bytes(tail[4:8], "little") if frame.payload_nbytes else 0
    return recorded if frame.tail(recorded) == tail else None


def locate(head: bytes) -> Located:
    """Find the payload by walking the local headers from an item's start.

    Raises:
        Surprise: it is no such archive, or its payload starts after *head*.
    """
    ends = Ends(head, b"", len(head))
    offset = 0
    for _ in range(_MAX_RECORDS_BEFORE_PAYLOAD):
        local = local_at(ends, offset)
        require(local.data_offset <= len(head), "the payload starts after the item's head")
        if local.name.endswith(_PAYLOAD_NAME):
            return Located(local.data_offset)
        offset = end_of_data(head, local)
    raise Surprise("too many records before the payload")


def confirm(
    head: Bytes,
    tail: Bytes,
    *,
    item_nbytes: int,
    payload_offset: int,
    payload_nbytes: int,
    dtype: torch.dtype,
    shape: Sequence[int],
) -> int | None:
    """Prove that an item's payload is in its place and is a row-major tensor of *dtype* and *shape*.

    *head* are the item's bytes up to the payload, *tail* those after it. Nothing is said about the payload's
    bytes: compare their CRC32 with the one returned.

    Returns:
        The CRC32 recorded for the payload; None if the writer recorded none.

    Raises:
        StridedPayload: all is proved but the order: the stored tensor has other strides.
        Surprise: something is not as expected, or is not understood.
    """
    require(sys.byteorder == "little", "this host is not little-endian")
    require(len(head) == payload_offset, "the head does not end where the payload starts")
    require(
        payload_offset + payload_nbytes + len(tail) == item_nbytes,
        "head, payload and tail do not make the item",
    )
    require(payload_nbytes == prod(shape) * dtype.itemsize, "the payload is not as long as dtype and shape say")
    head, tail = bytes(head), bytes(tail)
    recorded = _common_crc32(_common_frame(dtype, shape), head, tail)
    if recorded is not None:
        return recorded
    return _examine(Ends(head, tail, item_nbytes), payload_offset, payload_nbytes, dtype, tuple(shape))


def _examine(
    ends: Ends, payload_offset: int, payload_nbytes: int, dtype: torch.dtype, shape: tuple[int, ...]
) -> int | None:
    """`confirm` for items that are not of the common form."""
    records = directory(ends)
    archive_name, _, _ = next(iter(records), b"").partition(b"/")
    pickle = _required(records, archive_name + b"/data.pkl")
    byteorder = records.get(archive_name + b"/byteorder")
    require(byteorder is None or content_of(ends, byteorder) == b"little", "the item is not little-endian")

    facts = tensor_facts(content_of(ends, pickle))
    require(facts.dtype == dtype and facts.shape == shape, "the stored tensor has another dtype or shape")
    require(
        facts.offset == 0 and facts.payload_nbytes == payload_nbytes,
        "the stored tensor does not fill its storage",
    )
    require(facts.key == "0", "the stored tensor is in another record")

    payload = _required(records, archive_name + _PAYLOAD_NAME)
    local = local_at(ends, payload.offset)
    require(local.name == payload.name, "the payload's two names differ")
    require(local.data_offset == payload_offset, "the payload lies elsewhere")
    require(payload.nbytes == payload_nbytes, "the payload has another length")
    # A writer without CRCs leaves them all 0; data.pkl's is 0 by chance once in four thousand million items.
    recorded = payload.crc if pickle.crc or payload.crc else None
    _require_row_major(facts, recorded)
    return recorded


def _required(records: dict[bytes, Entry], name: bytes) -> Entry:
    require(name in records, "the item lacks a record that every tensor has")
    return records[name]


def _require_row_major(facts: TensorFacts, recorded: int | None) -> None:
    expected = contiguous_stride(facts.shape)
    strides = zip(facts.shape, facts.stride, expected, strict=True)
    if 0 not in facts.shape and any(stride != usual for size, stride, usual in strides if size != 1):
        raise StridedPayload("the stored tensor is not in row-major order", facts.stride, recorded)


def dimension_order(head: bytes, dtype: torch.dtype, shape: Sequence[int]) -> tuple[int, ...]:
    """The dimensions of an item's elements as they lie in memory, outermost first; to be proved by `confirm`.

    Args:
        head: the item's bytes up to the payload, which hold its pickle.
        dtype: of the tensor.
        shape: of the tensor.

    Raises:
        Surprise: they do not, it is another tensor's, or its elements do not fill a block of memory.
    """
    if is_common_head(head, dtype, shape):
        return tuple(range(len(shape)))
    first = local_at(Ends(head, b"", len(head)), 0)
    require(first.name.endswith(b"/data.pkl"), "the item does not begin with its pickle")
    facts = tensor_facts(data_of(head, first))
    require(facts.dtype == dtype and facts.shape == tuple(shape), "the stored tensor has another dtype or shape")
    order = order_of(facts.shape, facts.stride)
    require(order is not None, "the stored tensor's elements do not fill a block of memory")
    assert order is not None
    return order


def order_of(shape: Sequence[int], stride: Sequence[int]) -> tuple[int, ...] | None:
    """The dimensions from the outermost in memory to the innermost; None unless the elements fill a block."""
    order = sorted(range(len(shape)), key=lambda dim: -stride[dim])
    expected = 1
    for dim in reversed(order):
        if shape[dim] != 1 and stride[dim] != expected:
            return None
        expected *= shape[dim]
    return tuple(order)


def common_payload(item: memoryview, dtype: torch.dtype, shape: Sequence[int]) -> memoryview | None:
    """The payload of a whole item in memory, if it is as long as the common form's, and begins so; else None.

    That proves place, dtype, shape and order, and nothing of the payload's bytes: who knows their CRC32 can compare it,
    and need not look at what follows them.
    """
    frame = _common_frame(dtype, shape)
    if frame is None or frame.item_nbytes != len(item):
        return None
    start = len(frame.head)
    return item[start : start + frame.payload_nbytes] if bytes(item[:start]) == frame.head else None


def payload_of(item: memoryview, dtype: torch.dtype, shape: Sequence[int]) -> tuple[memoryview, int | None]:
    """The payload of a whole item in memory, proved and checked: a view into *item*.

    Returns:
        The payload; its CRC32, which is the recorded one, or None if the writer recorded none.

    Raises:
        ChecksumMismatch: the payload's bytes do not match the CRC32 recorded for them.
        Surprise: as `confirm` and `locate`.
    """
    frame = _common_frame(dtype, shape)
    if frame is not None and frame.item_nbytes == len(item):
        start = len(frame.head)
    else:
        start = locate(bytes(item)).payload_offset
    end = start + prod(shape) * dtype.itemsize
    payload = item[start:end]
    recorded = _common_crc32(frame, bytes(item[:start]), bytes(item[end:]))
    if recorded is None:
        recorded = confirm(
            item[:start],
            item[end:],
            item_nbytes=len(item),
            payload_offset=start,
            payload_nbytes=end - start,
            dtype=dtype,
            shape=shape,
        )
    if recorded is not None and crc32(payload) != recorded:
        raise ChecksumMismatch(f"the payload's CRC32 is not the recorded {recorded:#010x}")
    return payload, recorded


def is_common_head(head: Bytes, dtype: torch.dtype, shape: Sequence[int]) -> bool:
    """Whether *head* is, byte for byte, the common form's for a row-major tensor of *dtype* and *shape*.

    It then holds the whole of data.pkl, and the payload follows it; only the CRC32 is in the tail.
    """
    frame = _common_frame(dtype, shape)
    return frame is not None and frame.head == bytes(head)
