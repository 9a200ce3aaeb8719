"""Two ranks on gloo, each with a loop of its own."""

from __future__ import annotations

from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from awaitable.workers import awaited
from dcp.checkpoints import Place
from dcp.test_ranks import launch


def test_several_at_once_on_one_process_group(local: Place) -> None:
    launch(local, 2, awaited.several_at_once)
    names = ("0", "1", "2", "3", "later")
    assert local.keys("ckpt/") == [
        f"ckpt/{name}/{object_}" for name in names for object_ in (".metadata", "__0_0.distcp", "__1_0.distcp")
    ]


def test_cancelled_on_one_rank(local: Place, local_endpoint: LocalEndpoint) -> None:
    local_endpoint.add_fault(Fault(FaultKind.STALL, "PutObject", key="first/__1_0", count=None, after_bytes=100))
    launch(local, 2, awaited.cancelled_on_one)
    assert local.keys("ckpt/first/.metadata") == []
