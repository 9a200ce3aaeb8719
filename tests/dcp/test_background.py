"""Saves in the background run on threads that give way, in larger parts, and touch nothing that others use."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

import aiockpt
from aiockpt.bridge import get_bridge
from aiockpt.config import S3ClientConfig
from aiockpt.dcp import background
from aiockpt.errors import AccessDenied, ConfigError
from aiockpt.model import MiB
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from dcp.checkpoints import Place, emptied, failure, random_tensor, same_bits
from dcp.workers.telling import TellingPlanner, nice_of

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

STATE = {"one": random_tensor((11, 256, 1024), torch.float32), "step": 3}
LARGE = {"one": torch.zeros(96 * MiB, dtype=torch.uint8)}
HALVES = {"one": LARGE["one"][: 48 * MiB], "two": LARGE["one"][48 * MiB :]}
SETTINGS: dict[str, Any] = {"part_size": 5 * MiB, "hedge_share": 0.0, "background_share": 100.0}


class NicePlanner(DefaultSavePlanner):
    """Notes the nice value of the thread that calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.nices: Counter[int] = Counter()

    def resolve_data(self, write_item: Any) -> Any:
        self.nices[nice_of(threading.get_native_id())] += 1
        return super().resolve_data(write_item)


def loop_nices() -> dict[str, int]:
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("aiockpt-")]
    return {thread.name: nice_of(thread.native_id) for thread in threads if thread.native_id}


def save_beside(place: Place, state: dict[str, Any] = STATE, **settings: Any) -> NicePlanner:
    planner = NicePlanner()
    writer = place.writer(**SETTINGS | settings)
    saving: Any = dcp.async_save(state, storage_writer=writer, planner=planner, no_dist=True)
    saving.result()
    return planner


def uploaded_parts(endpoint: LocalEndpoint) -> int:
    return endpoint.stats().requests.get("UploadPart", 0)


@pytest.mark.skipif(sys.platform != "linux", reason="nice values are the process's elsewhere")
@pytest.mark.parametrize("nice", [0, 5])
def test_all_of_its_threads_give_way_and_no_others(nice: int, local: Place) -> None:
    usual = nice_of(threading.get_native_id())
    assert save_beside(local, background_nice=nice).nices.keys() == {usual + nice}
    nices = loop_nices()
    assert nices[f"aiockpt-background-{nice}"] == usual + nice
    assert nices["aiockpt-loop"] == usual
    assert same_bits(local.load(emptied(STATE)), STATE)


@pytest.mark.skipif(sys.platform != "linux", reason="nice values are the process's elsewhere")
@pytest.mark.usefixtures("group")
def test_a_process_of_dcp_gives_way_too(local: Place, local_endpoint: LocalEndpoint, tmp_path: Path) -> None:
    writer, planner = local.writer(**SETTINGS, background_nice=7), TellingPlanner(tmp_path / "nice")
    kind = AsyncCheckpointerType.PROCESS
    saving: Any = dcp.async_save(LARGE, storage_writer=writer, planner=planner, async_checkpointer_type=kind)
    saving.result()
    assert int((tmp_path / "nice").read_text()) == nice_of(threading.get_native_id()) + 7
    assert uploaded_parts(local_endpoint) == 16  # 20 in the foreground, see below
    assert same_bits(local.load(emptied(LARGE)), LARGE)


@pytest.mark.parametrize("state", [LARGE, HALVES], ids=["1 object", "2 objects"])
def test_its_parts_are_large(state: dict[str, Any], local: Place, local_endpoint: LocalEndpoint) -> None:
    before = uploaded_parts(local_endpoint)
    local.save(state, "foreground", thread_count=len(state), **SETTINGS)
    between = uploaded_parts(local_endpoint)
    save_beside(local, state=state, thread_count=len(state))
    assert between - before == 20
    assert uploaded_parts(local_endpoint) - between == 16


async def test_our_own_is_one_too(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    real = background.in_background

    def noting() -> bool:
        seen.append(real())
        return seen[-1]

    monkeypatch.setattr(background, "in_background", noting)
    await aiockpt.save_in_background(STATE, local.uri("ckpt"), config=S3ClientConfig(**local.settings, **SETTINGS))
    assert set(seen) == {True}
    seen.clear()
    await aiockpt.save(STATE, local.uri("again"), config=S3ClientConfig(**local.settings, **SETTINGS))
    assert set(seen) == {False}


def test_the_usual_loop_thread_is_there_first(local: Place) -> None:
    """Or it would be started by a thread that gives way, and would have to do so, too, for as long as it lives."""
    save_beside(local)
    assert get_bridge().run(own_nice) == nice_of(threading.get_native_id())


async def own_nice() -> int:
    return nice_of(threading.get_native_id())


def test_a_pause_ends_with_the_save(local: Place, local_endpoint: LocalEndpoint) -> None:
    """The next part would come in hours; the failure of the first does not wait for it."""
    fault = Fault(FaultKind.ERROR, "CreateMultipartUpload", key=".distcp", status=403, code="AccessDenied")
    local_endpoint.add_fault(fault)
    with pytest.raises(CheckpointException) as caught:
        save_beside(local, background_share=1e-6)
    assert isinstance(failure(caught.value), AccessDenied)


def test_wrong_settings_are_told(local: Place) -> None:
    with pytest.raises(CheckpointException) as caught:
        save_beside(local, background_nice=25)
    assert isinstance(failure(caught.value), ConfigError)
