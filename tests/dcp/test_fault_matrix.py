"""The fault matrix, at the level of `dcp.save` and `dcp.load`: a cell ends in equal bytes or the documented error."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from aiockpt import errors
from aiockpt.model import MiB
from aiockpt.testing import Fault, LocalEndpoint
from dcp.checkpoints import Place, emptied, failure, random_tensor, same_bits
from dcp.fault_matrix import NONE, ROWS, UNHARMED, Row

DOCUMENTED = Path(__file__).parents[2] / "docs" / "faults.md"
SEEDS = range(3)

#: Quick to despair: what a test can wait for, and fewer tries than there are requests.
SETTINGS = {
    "part_size": 5 * MiB,
    "backoff_base_s": 0.001,
    "backoff_cap_s": 0.005,
}


def state(seed: int) -> dict[str, Any]:
    """Every way of an item: large, small, scattered, of another form, serialized; two parts' worth of it."""
    return {
        "large": random_tensor((1500, 1000), torch.float32, seed),
        "small": {str(number): random_tensor((300,), torch.bfloat16, seed + number) for number in range(5)},
        "scattered": random_tensor((700, 300), torch.float32, seed).t(),
        "empty": torch.zeros(0, 3),
        "step": seed,
        "note": ["serialized", seed],
    }


def settings(row: Row, seed: int) -> dict[str, Any]:
    """Of an engine that no other cell has drawn retries from: engines are shared by equal settings.

    Every other one works with two loop threads: the outcomes must not depend on it.
    """
    number = len(SEEDS) * ROWS.index(row) + seed
    return SETTINGS | {"stall_timeout_s": 0.15 + 1e-6 * number, "loop_threads": 1 + number % 2}


def cells(direction: str) -> list[Any]:
    """Each row with each seed that makes another fault of it."""
    return [
        pytest.param(row, seed, id=f"{row.name}-{seed}".replace(" ", "_"))
        for row in ROWS
        if getattr(row, direction) != NONE
        for seed in {fault_of(row, direction, seed): seed for seed in reversed(SEEDS)}.values()
    ]


def fault_of(row: Row, direction: str, seed: int) -> Fault:
    return row.make(random.Random(f"{direction} {row.name} {seed}"))


def is_documented_error(error: CheckpointException, name: str) -> bool:
    return type(failure(error)) is getattr(errors, name)


@pytest.mark.parametrize(("row", "seed"), cells("load"))
def test_load(row: Row, seed: int, local: Place, local_endpoint: LocalEndpoint) -> None:
    local.save(state(seed), **settings(row, seed))
    local_endpoint.add_fault(fault_of(row, "load", seed))
    if row.load == UNHARMED:
        assert same_bits(local.load(emptied(state(seed)), **settings(row, seed)), state(seed))
    else:
        with pytest.raises(CheckpointException) as caught:
            local.load(emptied(state(seed)), **settings(row, seed))
        assert is_documented_error(caught.value, row.load)


@pytest.mark.parametrize(("row", "seed"), cells("save"))
@pytest.mark.filterwarnings("ignore:.*holds a checkpoint already")
def test_save_over_an_old_checkpoint(row: Row, seed: int, local: Place, local_endpoint: LocalEndpoint) -> None:
    old, new = state(100 + seed), state(seed)
    local.save(old, **settings(row, seed))
    local_endpoint.add_fault(fault_of(row, "save", seed))
    stands = new
    if row.save == UNHARMED:
        local.save(new, **settings(row, seed))
    else:
        with pytest.raises(CheckpointException) as caught:
            local.save(new, **settings(row, seed))
        assert is_documented_error(caught.value, row.save)
        stands = old
    local_endpoint.clear_faults()
    assert same_bits(local.load(emptied(stands)), stands)


def test_the_documentation_shows_the_matrix() -> None:
    table = [f"| {row.name} | {row.load or '-'} | {row.save or '-'} |" for row in ROWS]
    assert "\n".join(table) in DOCUMENTED.read_text()
