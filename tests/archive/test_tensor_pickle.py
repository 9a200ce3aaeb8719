from __future__ import annotations

import io
import zipfile

import pytest
import torch

from aiockpt.archive.tensor_pickle import picklable, tensor_pickle
from archive.torch_items import DTYPES, SHAPES, saved_by_torch, tensor_of


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_pickles_are_those_of_torch(dtype: torch.dtype, *, requires_grad: bool) -> None:
    if requires_grad and not (dtype.is_floating_point or dtype.is_complex):
        return
    for shape in SHAPES[:14]:
        tensor = tensor_of(dtype, shape).requires_grad_(requires_grad)
        with zipfile.ZipFile(io.BytesIO(saved_by_torch(tensor))) as archive:
            theirs = archive.read("archive/data.pkl")
        ours = tensor_pickle(dtype, shape, tensor.stride(), tensor.nbytes, requires_grad=requires_grad)
        assert ours == theirs


def test_dtypes_without_items_of_this_kind() -> None:
    assert not picklable(torch.qint8)
    assert not picklable(torch.quint4x2)
