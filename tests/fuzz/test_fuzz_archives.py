"""Any bytes as an item: the right tensor, or ``Surprise`` or ``ChecksumMismatch``; in little memory."""

from __future__ import annotations

from contextlib import suppress

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save as saved_by_safetensors

from aiockpt.archive.safetensors import build_header, parse_header
from aiockpt.archive.surprise import StridedPayload, Surprise
from aiockpt.archive.tensor_unpickle import tensor_facts
from aiockpt.archive.torchload import confirm, locate, payload_of
from aiockpt.archive.torchsave import framed, storage_view
from aiockpt.archive.zip_directory import Ends, content_of, directory
from aiockpt.errors import ChecksumMismatch
from aiockpt.model import KiB
from archive.torch_items import rezipped, saved_by_torch, saved_by_us, tensor_of
from fuzz.mutations import little_memory, mutated

TENSOR = tensor_of(torch.float32, (3, 5), 1)
ELEMENTS = bytes(storage_view(TENSOR))
ITEMS = [
    saved_by_us(TENSOR),
    saved_by_torch(TENSOR.t().contiguous().t()),
    saved_by_torch(torch.nn.Parameter(TENSOR)),
    rezipped(saved_by_torch(TENSOR)),
    rezipped(saved_by_torch(TENSOR), name="checkpoint"),
]
PICKLES = [framed(TENSOR)[0].head[64 : 64 + 130], saved_by_torch(tensor_of(torch.uint16, (2, 0, 3)))[40:300]]
PICKLES += [item[item.index(b"\x80\x02") : item.index(b".PK") + 1] for item in ITEMS[:3] if b".PK" in item]
HEADERS = [
    build_header([("a", torch.float32, (3, 5)), ("b", torch.int8, (0, 7))], {"k": "v"}),
    build_header([], None),
    saved_by_safetensors({"w": TENSOR, "layers.0": torch.zeros(2, 0, 3)}),
]


@given(mutated(ITEMS))
def test_any_bytes_as_a_whole_item(data: bytes) -> None:
    with little_memory(64 * KiB + 20 * len(data)), suppress(Surprise, ChecksumMismatch):
        payload, is_proven = payload_of(memoryview(data), torch.float32, (3, 5))
        assert len(payload) == TENSOR.nbytes
        assert bytes(payload) == ELEMENTS or not is_proven  # a mutation can take the CRC32s away


@given(mutated(ITEMS), st.integers(0, 3000), st.integers(0, 3000))
def test_any_bytes_around_a_payload(data: bytes, first: int, length: int) -> None:
    with little_memory(64 * KiB + 20 * len(data)), suppress(Surprise):
        start = locate(data[:4096]).payload_offset
        assert 0 <= start <= len(data)
        for head_nbytes in (start, first):
            with suppress(StridedPayload):
                confirm(
                    data[:head_nbytes],
                    data[head_nbytes + TENSOR.nbytes :],
                    item_nbytes=len(data) if first % 2 else length,
                    payload_offset=head_nbytes,
                    payload_nbytes=TENSOR.nbytes,
                    dtype=TENSOR.dtype,
                    shape=TENSOR.shape,
                )


@given(mutated(ITEMS), st.integers(0, 2000), st.integers(0, 2000), st.sampled_from([0, 1, 1 << 20, 1 << 62]))
def test_any_bytes_as_the_ends_of_an_archive(data: bytes, head: int, tail: int, missing: int) -> None:
    ends = Ends(data[:head], data[len(data) - tail :] if tail else b"", len(data) + missing)
    with little_memory(64 * KiB + 40 * len(data)), suppress(Surprise):
        for entry in directory(ends).values():
            with suppress(Surprise):
                content_of(ends, entry)


@given(mutated(PICKLES))
def test_any_bytes_as_a_tensors_pickle(data: bytes) -> None:
    with little_memory(64 * KiB + 100 * len(data)), suppress(Surprise):
        facts = tensor_facts(data)
        assert len(facts.shape) == len(facts.stride)
        assert min((*facts.shape, *facts.stride, facts.offset, facts.payload_nbytes)) >= 0


@given(mutated(HEADERS))
def test_any_bytes_as_a_safetensors_header(data: bytes) -> None:
    with little_memory(256 * KiB + 100 * len(data)), suppress(Surprise):
        header = parse_header(data)
        filled = 0
        for tensor in header.tensors:
            assert tensor.start == filled <= tensor.end
            filled = tensor.end
        assert header.data_offset <= len(data)


def test_the_sound_ones_are_sound() -> None:
    """Else the mutations would only be noise."""
    for item in ITEMS:
        with suppress(StridedPayload):
            payload, is_proven = payload_of(memoryview(item), torch.float32, (3, 5))
            assert bytes(payload) == ELEMENTS
            assert is_proven
    assert any(tensor_facts(data).shape == (3, 5) for data in PICKLES[2:])
    assert [len(parse_header(data).tensors) for data in HEADERS] == [2, 0, 2]
