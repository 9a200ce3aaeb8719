from __future__ import annotations

from typing import Any

import pytest
import torch

from aiockpt.demo.fingerprint import fingerprints

TENSOR = torch.arange(6, dtype=torch.float32)


def flipped(tensor: torch.Tensor) -> torch.Tensor:
    copy = tensor.clone()
    copy.view(torch.int32)[3] ^= 1
    return copy


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (TENSOR, flipped(TENSOR)),
        (TENSOR, TENSOR.view(2, 3)),
        (TENSOR, TENSOR.view(torch.int32)),
        (torch.tensor(0.0), torch.tensor(-0.0)),
        (0.0, -0.0),
        (0.1, 0.1 + 2**-56),
        (1, 1.0),
        (1, True),
        (None, "None"),
    ],
)
def test_any_difference_shows(one: Any, other: Any) -> None:
    assert fingerprints({"a": one}) != fingerprints({"a": other})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (TENSOR, TENSOR.clone()),
        (TENSOR.view(2, 3).T, TENSOR.view(2, 3).T.contiguous()),
        (torch.tensor(float("nan")), torch.tensor(float("nan"))),
        (float("nan"), float("nan")),
        (torch.empty(0), torch.zeros(0)),
        (torch.nn.Parameter(TENSOR), TENSOR),
    ],
)
def test_the_same_is_the_same(one: Any, other: Any) -> None:
    assert fingerprints({"a": one}) == fingerprints({"a": other})


def test_leaves_are_named_by_their_path() -> None:
    state = {"model": {"w": TENSOR}, "groups": [{"lr": 0.5}, (1, "x")], "step": 3}
    assert set(fingerprints(state)) == {"model.w", "groups.0.lr", "groups.1.0", "groups.1.1", "step"}
