from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aiockpt.archive.frame import Frame, contiguous_frame, contiguous_stride
from aiockpt.archive.torchload import confirm, locate
from archive.torch_items import DTYPES, SHAPES

if TYPE_CHECKING:
    from pathlib import Path


@given(st.lists(st.integers(0, 5), max_size=6))
def test_contiguous_strides_are_torchs(shape: list[int]) -> None:
    assert contiguous_stride(shape) == torch.empty(shape).stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lengths_add_up_and_payloads_are_aligned(dtype: torch.dtype) -> None:
    for shape in [*SHAPES, (1 << 31,), ((1 << 33) + 1, 3)]:
        frame = contiguous_frame(dtype, shape)
        assert len(frame.head) % 64 == 0
        assert frame.item_nbytes == len(frame.head) + frame.payload_nbytes + len(frame.tail(7))


def test_a_frame_above_4_gib_is_read_by_zipfile_and_by_us(tmp_path: Path) -> None:
    nbytes = (1 << 32) + 12345
    frame: Frame = contiguous_frame(torch.uint8, (nbytes,))
    tail = frame.tail(99)
    with (tmp_path / "sparse").open("wb") as file:
        file.write(frame.head)
        file.seek(nbytes, 1)
        file.write(tail)
    with zipfile.ZipFile(tmp_path / "sparse") as archive:
        info = archive.getinfo("archive/data/0")
        assert (info.file_size, info.compress_size, info.CRC) == (nbytes, nbytes, 99)
        assert archive.read("archive/version") == b"3\n"
        assert len(archive.read("archive/.data/serialization_id")) == 40
    # The second head is not the one that we would write, so that the directory is taken apart.
    for head in (frame.head, frame.head.replace(b"q\x07\x89", b"q\x07\x88")):
        assert locate(head).payload_offset == len(head)
        assert len(head) == len(frame.head)
    recorded = confirm(
        frame.head,
        tail,
        item_nbytes=frame.item_nbytes,
        payload_offset=len(frame.head),
        payload_nbytes=nbytes,
        dtype=torch.uint8,
        shape=(nbytes,),
    )
    assert recorded == 99


def test_the_slow_reader_understands_zip64() -> None:
    nbytes = (1 << 32) + 12345
    frame = contiguous_frame(torch.uint8, (nbytes,))
    tail = bytearray(frame.tail(99))
    at = tail.index(b"15728199511854643026")
    tail[at] ^= 1  # another fingerprint: not the tail that we would write
    recorded = confirm(
        frame.head,
        bytes(tail),
        item_nbytes=frame.item_nbytes,
        payload_offset=len(frame.head),
        payload_nbytes=nbytes,
        dtype=torch.uint8,
        shape=(nbytes,),
    )
    assert recorded == 99
