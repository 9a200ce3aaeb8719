"""One rank of several: saves a state of sharded tensors, or loads it under another sharding and compares."""

from __future__ import annotations

import functools
import os
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from aiockpt import dcp as ours
from aiockpt.dcp import S3StorageReader, S3StorageWriter
from aiockpt.errors import AiockptError

#: What a rank does with the mesh of all ranks, a checkpoint's URI, and options.
Verb = Callable[[DeviceMesh, str, dict[str, Any]], None]

SHAPES = {"even": (12, 64), "uneven": (7, 301), "wide": (5, 300_000), "few rows": (1, 9), "bias": (13,)}


def tensor(name: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(name))
    return torch.randn(SHAPES[name], generator=generator)


def sharded(mesh: DeviceMesh, dim: int) -> dict[str, Any]:
    placements = {name: [Shard(min(dim, len(shape) - 1))] for name, shape in SHAPES.items()}
    state: dict[str, Any] = {name: distribute_tensor(tensor(name), mesh, placements[name]) for name in SHAPES}
    return state | {"replicated": distribute_tensor(tensor("even"), mesh, [Replicate()]), "plain": tensor("bias")}


def model(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    made = torch.nn.Sequential(torch.nn.Linear(33, 50), torch.nn.ReLU(), torch.nn.Linear(50, 7))
    for layer in made:
        fully_shard(layer)
    fully_shard(made)
    return made


def whole(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def save(mesh: DeviceMesh, uri: str, options: dict[str, Any]) -> None:
    strategy = options.get("strategy")
    prefix_strategy = getattr(ours, strategy[0])(**strategy[1]) if strategy else None
    writer = S3StorageWriter("us-east-1", uri, prefix_strategy=prefix_strategy, thread_count=options.get("threads", 1))
    state = sharded(mesh, options.get("dim", 0)) | {"model": model(1).state_dict(), "step": 5}
    collectives = options.get("use_collectives", True)
    dcp.save(state, storage_writer=writer, use_collectives=collectives)
    assert writer.report is not None
    assert writer.report.rank == dist.get_rank()
    assert ("commit" in writer.report.phases) == (dist.get_rank() == 0 or not collectives)


def expect_failure(work: Callable[[], None], name: str) -> None:
    """That every rank's failure is of the named type of ours."""
    try:
        work()
    except dcp.api.CheckpointException as error:
        failures = [wrapped[0] for wrapped in error.failures.values()]
    else:
        failures = []
    assert {type(failure).__name__ for failure in failures} == {name}, failures
    assert all(isinstance(failure, AiockptError) for failure in failures)


def load(mesh: DeviceMesh, uri: str, options: dict[str, Any]) -> None:
    state: dict[str, Any] = sharded(mesh, options.get("dim", 0)) | {"model": model(2).state_dict(), "step": None}
    expected = {name: whole(value) for name, value in sharded(mesh, 0).items()} | {
        f"model.{name}": whole(value) for name, value in model(1).state_dict().items()
    }
    for name in (*SHAPES, "replicated", "plain"):
        getattr(state[name], "_local_tensor", state[name]).zero_()
    reader = S3StorageReader("us-east-1", uri)
    if "expect" in options:
        expect_failure(lambda: dcp.load(state, storage_reader=reader), options["expect"])
        return
    dcp.load(state, storage_reader=reader)
    assert reader.report is not None
    assert reader.report.rank == dist.get_rank()
    loaded = {name: whole(value) for name, value in state.items() if name not in {"model", "step"}} | {
        f"model.{name}": whole(value) for name, value in state["model"].items()
    }
    assert loaded.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(loaded[name], expected[name])]
    assert not different, different
    assert state["step"] == 5


def part(mesh: DeviceMesh, add: float = 0.0) -> dict[str, Any]:
    """One tensor, of which every rank writes and reads its own object only."""
    return {"wide": distribute_tensor(tensor("wide") + add, mesh, [Shard(1)])}


def fail_together(mesh: DeviceMesh, uri: str, options: dict[str, Any]) -> None:
    """A save or load whose rank 1 is refused while rank 0 gets no answer: no rank waits for that."""
    settings: dict[str, Any] = {"stall_timeout_s": 1000.0}
    work: Callable[[], None]
    if options["direction"] == "save":
        writer = S3StorageWriter("us-east-1", uri, **settings)
        work = functools.partial(dcp.save, part(mesh), storage_writer=writer)
    else:
        work = functools.partial(dcp.load, part(mesh), storage_reader=S3StorageReader("us-east-1", uri, **settings))
    try:
        work()
    except dcp.api.CheckpointException as error:
        failures = {rank: wrapped[0] for rank, wrapped in error.failures.items()}
    assert {rank: type(failure).__name__ for rank, failure in failures.items()} == {0: "RankFailed", 1: "AccessDenied"}
    assert all(word in str(failures[0]) for word in ("rank 1", "AccessDenied", "__1_0.distcp")), failures[0]


def save_part(mesh: DeviceMesh, uri: str, options: dict[str, Any]) -> None:
    dcp.save(part(mesh, **options), storage_writer=S3StorageWriter("us-east-1", uri))


def load_part(mesh: DeviceMesh, uri: str, options: dict[str, Any]) -> None:
    expected = whole(part(mesh, **options)["wide"])
    state = part(mesh, add=-1.0)
    dcp.load(state, storage_reader=S3StorageReader("us-east-1", uri))
    assert torch.equal(whole(state["wide"]), expected)


VERBS: dict[str, Verb] = {
    "save": save,
    "load": load,
    "save part": save_part,
    "load part": load_part,
    "fail together": fail_together,
}


def run_rank(environ: dict[str, str], verb: str | Verb, uri: str, options: dict[str, Any], outcome: Connection) -> None:
    """A rank's process: do it, and send what went wrong, ``""`` if nothing did."""
    try:
        os.environ.update(environ)
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        dist.init_process_group("gloo")
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        work = VERBS[verb] if isinstance(verb, str) else verb
        work(mesh, uri, options)
        dist.destroy_process_group()
        outcome.send("")
    except BaseException:  # noqa: BLE001  # whatever it was, the test shows it
        outcome.send(traceback.format_exc())
