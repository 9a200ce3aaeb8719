"""Whole loads by arrival are tested in `awaitable/test_tensors`; here, what the planner and the reader decide."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from aiockpt.dcp.arrivals import ArrivalsPlanner, ArrivalsReader
from aiockpt.errors import MetadataError, TargetMismatch
from aiockpt.model import MiB
from dcp.checkpoints import Place, random_tensor, same_bits

STATE = {f"w{n}": random_tensor((40, 100), torch.float32, n) for n in range(5)} | {"empty": torch.zeros(0, 4), "n": 5}


def planner(place: Place, **choice: Any) -> tuple[ArrivalsPlanner, list[tuple[str, torch.Tensor]]]:
    """One that was set up for the saved state, and what it hands over."""
    place.save(STATE)
    arrived: list[tuple[str, torch.Tensor]] = []
    made = ArrivalsPlanner(
        lambda name, tensor: arrived.append((name, tensor)), **{"names": None, "targets": {}, "device": "cpu"} | choice
    )
    made.set_up_planner({}, place.reader().read_metadata())
    return made, arrived


def test_a_tensor_is_handed_over_with_its_last_chunk(local: Place) -> None:
    made, arrived = planner(local, names=["w1", "w2"])
    plan = made.finish_plan(made.create_global_plan([made.create_local_plan()])[0])
    assert arrived == []
    first, second = plan.items
    made.resolve_tensor(first).fill_(1)
    made.resolve_tensor(second).fill_(2)
    assert made.resolve_tensor(first).eq(1).all()  # asked for again, it is the same memory
    made.commit_tensor(second, made.resolve_tensor(second))
    assert [(name, bool((tensor == 2).all())) for name, tensor in arrived] == [("w2", True)]
    made.commit_tensor(first, made.resolve_tensor(first))
    assert [name for name, _ in arrived] == ["w2", "w1"]


def test_what_has_no_bytes_is_handed_over_at_once(local: Place) -> None:
    made, arrived = planner(local, names=["empty"])
    plan = made.finish_plan(made.create_local_plan())
    assert [read.lengths for read in plan.items] == []
    assert [(name, tensor.shape) for name, tensor in arrived] == [("empty", (0, 4))]


def test_what_is_refused(local: Place) -> None:
    with pytest.raises(MetadataError, match="'n' is no tensor"):
        planner(local, names=["n"])
    with pytest.raises(MetadataError, match="'x' is not in the checkpoint"):
        planner(local, names=["x"])
    made, _ = planner(local, names=["w1"], targets={"w1": torch.zeros(3)})
    with pytest.raises(TargetMismatch, match="'w1'"):
        made.create_local_plan()
    with pytest.raises(NotImplementedError):
        made.load_bytes(None, None)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_with_readers_of_the_callers(local: Place) -> None:
    """Streams instead of ranges: slower, and the same."""
    from aiockpt.s3reader import S3ReaderConstructor

    made, arrived = planner(local)
    reader = ArrivalsReader(
        "us-east-1",
        local.uri("ckpt"),
        window_bytes=MiB,
        reader_constructor=S3ReaderConstructor.sequential(),
        **local.settings,
    )
    dcp.load({}, storage_reader=reader, planner=made, no_dist=True)
    assert same_bits(dict(arrived), {name: value for name, value in STATE.items() if name != "n"})
