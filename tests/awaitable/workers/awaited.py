"""What ranks do with awaitable saves and loads."""

from __future__ import annotations

import asyncio
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import DeviceMesh

import aiockpt
from aiockpt.errors import ClosedError, RankFailed
from dcp.workers.shards import sharded, tensor, whole


def emptied(mesh: DeviceMesh) -> dict[str, Any]:
    state = sharded(mesh, 0)
    for value in state.values():
        getattr(value, "_local_tensor", value).zero_()
    return state


def complete(state: dict[str, Any]) -> bool:
    return all(torch.equal(whole(state[name]), tensor(name)) for name in ("even", "uneven", "wide"))


def several_at_once(mesh: DeviceMesh, uri: str, _: dict[str, Any]) -> None:
    """On one process group: they take turns, or their collectives would answer each other."""

    async def run() -> None:
        state = sharded(mesh, 0)
        await asyncio.gather(*(aiockpt.save(state, f"{uri}/{n}") for n in range(4)))
        loaded = [emptied(mesh) for _ in range(4)]
        later = aiockpt.save_in_background(state, f"{uri}/later")
        await asyncio.gather(*(aiockpt.load(loaded[n], f"{uri}/{n}") for n in range(4)))
        assert all(map(complete, loaded))
        assert (await later).rank == mesh.get_rank()

    asyncio.run(run())


def cancelled_on_one(mesh: DeviceMesh, uri: str, _: dict[str, Any]) -> None:
    """Rank 1 cancels a save that hangs; rank 0 hears of it, and the next save works."""

    async def run() -> None:
        state = sharded(mesh, 0)
        save = aiockpt.save_in_background(state, f"{uri}/first", copy=False)
        if mesh.get_rank() == 1:
            while not ((progress := save.progress()) and progress.requests):  # noqa: ASYNC110  # it does not tell
                await asyncio.sleep(0.01)
            save.cancel()
        try:
            await save
        except (CheckpointException, ClosedError) as error:
            failure = error
        expected = ClosedError if mesh.get_rank() == 1 else CheckpointException
        assert isinstance(failure, expected), failure
        if isinstance(failure, CheckpointException):
            kinds = {type(wrapped[0]) for wrapped in failure.failures.values()}
            assert kinds <= {ClosedError, RankFailed}, failure
            assert kinds
        await aiockpt.save(state, f"{uri}/second")
        loaded = emptied(mesh)
        await aiockpt.load(loaded, f"{uri}/second")
        assert complete(loaded)

    asyncio.run(run())
