"""Several ranks on gloo: what N ranks saved, M ranks load; where each object lies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch

from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from dcp.checkpoints import Place, same_bits
from dcp.forks import FORKS
from dcp.workers import shards
from dcp.workers.shards import Verb
from servers.process import free_port

TIMEOUT_S = 60


@dataclass(frozen=True)
class Rank:
    """The process of one rank, and the line on which it says what went wrong."""

    process: Any
    line: Connection

    def said(self) -> str:
        """What went wrong; ``""``: nothing."""
        if not self.line.poll(TIMEOUT_S):
            return "nothing: it hangs"
        try:
            said: str = self.line.recv()
        except EOFError:
            return "nothing: it is gone"
        return said


@contextmanager
def launched(place: Place, ranks: int, verb: str | Verb, name: str = "ckpt", **options: Any) -> Iterator[list[Rank]]:
    """So many processes that save or load, or do something else; at the end they are ended."""
    shared = place.server.environ() | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(ranks),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    begun = []
    for rank in range(ranks):
        receiver, sender = FORKS.Pipe(duplex=False)
        arguments = (shared | {"RANK": str(rank)}, verb, place.uri(name), options, sender)
        process = FORKS.Process(target=shards.run_rank, args=arguments)
        process.start()
        sender.close()
        begun.append(Rank(process, receiver))
    try:
        yield begun
    finally:
        for rank_ in begun:
            rank_.process.terminate()
            rank_.process.join()


def launch(place: Place, ranks: int, verb: str | Verb, name: str = "ckpt", **options: Any) -> None:
    """Save or load, or do something else, with ``ranks`` processes; fails with what they have to say."""
    with launched(place, ranks, verb, name, **options) as begun:
        said = [rank.said() for rank in begun]
    assert said == [""] * ranks, "\n".join(said)


def test_saved_by_two_resumed_by_one_two_and_three(local: Place) -> None:
    launch(local, 2, "save")
    assert local.keys("ckpt/") == ["ckpt/.metadata", "ckpt/__0_0.distcp", "ckpt/__1_0.distcp"]
    for ranks, dim in ((1, 0), (2, 0), (3, 1)):
        launch(local, ranks, "load", dim=dim)


def test_saved_by_three_along_columns_resumed_by_two_along_rows(local: Place) -> None:
    launch(local, 3, "save", dim=1, threads=2)
    assert len(local.keys("ckpt/__")) == 6
    launch(local, 2, "load", dim=0)


def test_rank_local_metadata(local: Place) -> None:
    launch(local, 2, "save", use_collectives=False)
    assert local.keys("ckpt/") == [f"ckpt/__{rank}{end}" for rank in range(2) for end in (".metadata", "_0.distcp")]
    launch(local, 2, "load")


def test_every_rank_hears_what_failed(local: Place) -> None:
    launch(local, 2, "load", expect="NotFound")


@pytest.mark.parametrize(("direction", "operation"), [("save", "PutObject"), ("load", "GetObject")])
def test_who_fails_is_not_waited_for(
    direction: str, operation: str, local: Place, local_endpoint: LocalEndpoint
) -> None:
    if direction == "load":
        launch(local, 2, "save part")
    local_endpoint.add_fault(Fault(FaultKind.STALL, operation, key="__0_0", count=None, after_bytes=1000))
    denied = Fault(FaultKind.ERROR, operation, key="__1_0", count=None, status=403, code="AccessDenied")
    local_endpoint.add_fault(denied)
    launch(local, 2, "fail together", direction=direction)
    if direction == "save":
        assert local.keys() == []


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_is_killed_ends_the_others(killed: int, local: Place, local_endpoint: LocalEndpoint) -> None:
    """As gloo's collectives fail then; the old checkpoint stands, and another save replaces it."""
    launch(local, 2, "save part")
    local_endpoint.reset_stats()
    local_endpoint.add_fault(Fault(FaultKind.STALL, "PutObject", key=f"__{killed}_1", after_bytes=1000))
    with launched(local, 2, "save part", add=1.0) as ranks:
        while not local_endpoint.stats().faults:
            pass
        ranks[killed].process.kill()
        said = ranks[1 - killed].said()
    assert "RuntimeError" in said, said  # of gloo, through DCP
    assert "hangs" not in said
    assert loaded_part(local)
    local_endpoint.clear_faults()
    launch(local, 2, "save part", add=2.0)
    assert loaded_part(local, 2.0)


def loaded_part(place: Place, add: float = 0.0) -> bool:
    """Whether the tensor of ``shards.part`` is what was saved with this added."""
    expected = {"wide": shards.tensor("wide") + add}
    return same_bits(place.load({"wide": torch.zeros_like(expected["wide"])}), expected)


@pytest.mark.parametrize(
    ("strategy", "arguments", "objects"),
    [
        ("HexPrefixStrategy", {"epoch_num": 4}, ["0000000000/epoch_4/__0_0", "1000000000/epoch_4/__1_0"]),
        ("BinaryPrefixStrategy", {"min_prefix_length": 2, "prefix_count": 1}, ["00/__0_0", "00/__1_0"]),
        ("BinaryPrefixStrategy", {"min_prefix_length": 1, "prefix_count": 5}, ["000/__0_0", "100/__1_0"]),
        (
            "RoundRobinPrefixStrategy",
            {"user_prefixes": ["a", "b/c"], "epoch_num": 0},
            ["a/epoch_0/__0_0", "b/c/epoch_0/__1_0"],
        ),
    ],
)
def test_prefix_strategies_name_the_objects(
    local: Place, strategy: str, arguments: dict[str, Any], objects: list[str]
) -> None:
    launch(local, 2, "save", strategy=[strategy, arguments])
    assert local.keys("ckpt/") == ["ckpt/.metadata", *(f"ckpt/{name}.distcp" for name in objects)]
    launch(local, 1, "load")
