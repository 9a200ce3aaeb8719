"""What the tests of awaitable checkpoints save, and how they watch and stop it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.planner import LoadPlan, SavePlan

from aiockpt.model import MiB
from dcp.checkpoints import StateDict, random_tensor

STATE: StateDict = {
    "large": random_tensor((700, 1000, 5), torch.float32, 1),  # 14 MB: several parts
    "b": {"half": random_tensor((7,), torch.bfloat16, 2), "count": 5},
    "a": random_tensor((300, 1000), torch.float32, 3),
}


def large_state(nbytes: int, tensors: int) -> StateDict:
    each = nbytes // tensors // 4
    return {f"w{n}": torch.arange(n, n + each, dtype=torch.int32) for n in range(tensors)}


def sparse_target(rows: int = 4 * MiB // 64) -> torch.Tensor:
    """Scattered elements, that bytes can neither leave from nor land in: 4 MiB that have to be staged."""
    return torch.zeros(rows, 32)[:, ::2]


class Gate:
    """Where a thread waits until it is let go on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    def pass_through(self) -> None:
        self.reached.set()
        assert self.open.wait(30)

    async def until_reached(self) -> None:
        await until(self.reached.is_set)


class HeldSavePlanner(DefaultSavePlanner):
    """One whose planning takes as long as the test wants."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate

    def create_local_plan(self) -> SavePlan:
        self._gate.pass_through()
        return super().create_local_plan()


class HeldLoadPlanner(DefaultLoadPlanner):
    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate

    def create_local_plan(self) -> LoadPlan:
        self._gate.pass_through()
        return super().create_local_plan()


async def until(condition: Callable[[], object]) -> None:
    """Wait for what other threads and processes bring about."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # others do not tell this loop
            await asyncio.sleep(0.001)


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel it and see it end by that."""
    task.cancel()
    done, _ = await asyncio.wait([task])
    assert done == {task}
    assert task.cancelled()


def operation_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "aiockpt-operation"]


def threads_left() -> list[threading.Thread]:
    """Threads of operations, but for those that have told their outcome and are just leaving."""
    for thread in operation_threads():
        thread.join(0.5)
    return operation_threads()
