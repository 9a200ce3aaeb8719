"""What ranks do with the checkpoints of a run."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from aiockpt import BlockingCheckpoints
from aiockpt.checkpoints.steps import Step
from aiockpt.errors import NotFound
from dcp.workers.shards import sharded, tensor, whole

NAMES = ("even", "uneven", "wide")


def blocking(mesh: DeviceMesh, uri: str, _: dict[str, Any]) -> None:
    """Four steps, of which two are kept; the latest is deleted by the first rank as all are about to load it."""
    run = BlockingCheckpoints(uri, region="us-east-1", keep_last=2)
    try:
        run.load_latest(state(mesh, 0))
    except NotFound as error:
        assert uri in str(error)  # noqa: PT017  # on each rank
    else:
        raise AssertionError("there was nothing to load")
    for step in (1, 2, 3, 4):
        report = run.save(step, state(mesh, step))
        assert report is not None
        assert report.rank == mesh.get_rank()
    assert loaded(run, mesh) == 4
    assert loaded(Deleting(uri, region="us-east-1"), mesh) == 3


class Deleting(BlockingCheckpoints):
    """Its first rank deletes step 4 before it loads it."""

    def load(self, step: int | Step, *args: Any, **kwargs: Any) -> Any:
        if isinstance(step, Step) and step.step == 4:
            self.delete(step)
        return super().load(step, *args, **kwargs)


def state(mesh: DeviceMesh, step: int) -> dict[str, Any]:
    made = sharded(mesh, 0)
    for value in made.values():
        getattr(value, "_local_tensor", value).add_(step)
    return made | {"step": step}


def loaded(run: BlockingCheckpoints, mesh: DeviceMesh) -> int:
    """The step that the latest checkpoint turns out to be, by its name and by all that it holds."""
    target = state(mesh, 0)
    step = run.load_latest(target).step
    assert target["step"] == step
    for name in NAMES:
        assert torch.equal(whole(target[name]), tensor(name) + step)
    return step
