from __future__ import annotations

import pytest
import torch

from aiockpt.measuring.workload import mixed


@pytest.mark.parametrize("nbytes", [1_000_000, 30_000_000])
def test_about_as_large_as_asked_and_always_the_same(nbytes: int) -> None:
    state = mixed(nbytes)
    assert sum(tensor.nbytes for tensor in state.values()) == pytest.approx(nbytes, rel=0.1)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32, torch.bfloat16}
    assert all(size % 8 == 0 for tensor in state.values() for size in tensor.shape)
    assert all(torch.equal(tensor, again) for tensor, again in zip(state.values(), mixed(nbytes).values(), strict=True))
