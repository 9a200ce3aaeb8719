"""Ctrl-C, fork and exit while checkpoints are saved and loaded: no hang, no leak, a clear outcome."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import pytest

from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from bridge.work import needs_late_threads
from dcp.checkpoints import Place
from dcp.workers import processes

#: Forks from a process that has imported torch once and has no threads.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["aiockpt.dcp", "torch.distributed.fsdp", "torch.distributed.tensor"])

#: What must not be reached: everything here is over in a few seconds.
TIMEOUT_S = 60


@contextmanager
def process(place: Place, verb: str, argument: str, loop_threads: int) -> Iterator[tuple[Any, Connection]]:
    here, there = FORKS.Pipe()
    arguments = (place.server.environ(), verb, place.uri("ckpt"), argument, loop_threads, there)
    made = FORKS.Process(target=processes.run, args=arguments)
    made.start()
    there.close()
    try:
        yield made, here
    finally:
        made.kill()
        made.join()


def hear(control: Connection) -> str:
    assert control.poll(TIMEOUT_S), "it hangs"
    said: str = control.recv()
    return said


def stalled(endpoint: LocalEndpoint, requests: int = 1) -> bool:
    """Whether so many requests are stuck; looked up until they are."""
    while endpoint.stats().requests_current < requests:
        pass
    return True


@pytest.fixture
def saved(local: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name, value in local.server.environ().items():
        monkeypatch.setenv(name, value)
    local.save(processes.state(), "ckpt")
    local.save(processes.state(), "ckpt-stalled")
    return local


@pytest.mark.parametrize("loop_threads", [1, 2])
@pytest.mark.parametrize(("verb", "operation"), [("save", "UploadPart"), ("load", "GetObject")])
def test_ctrl_c(verb: str, operation: str, loop_threads: int, saved: Place, local_endpoint: LocalEndpoint) -> None:
    local_endpoint.add_fault(Fault(FaultKind.STALL, operation, key=".distcp", count=None, after_bytes=1000))
    with process(saved, "interrupted", verb, loop_threads) as (made, control):
        assert hear(control) == "begins"
        assert stalled(local_endpoint)
        os.kill(made.pid, signal.SIGINT)
        assert hear(control) in {"CheckpointException", "KeyboardInterrupt"}
        assert saved.uploads() == []
        local_endpoint.clear_faults()
        control.send("faults are cleared")
        assert hear(control) == ""
    assert saved.keys("ckpt/") == ["ckpt/.metadata", "ckpt/__0_0.distcp"]


@pytest.mark.parametrize("loop_threads", [1, 2])
@pytest.mark.parametrize("when", ["before the loop started", "idle", "mid-load"])
def test_fork(when: str, loop_threads: int, saved: Place, local_endpoint: LocalEndpoint) -> None:
    with process(saved, "forked", when, loop_threads) as (_, control):
        if when == "mid-load":
            stall = Fault(FaultKind.STALL, "GetObject", key="stalled/__0_0", count=None, after_bytes=1000)
            local_endpoint.add_fault(stall)
            assert hear(control) == "begins"
            assert stalled(local_endpoint)
            control.send("it is stalled")
            assert hear(control) == "forked"
            local_endpoint.clear_faults()
        assert hear(control) == ""


def program(place: Place, source: str, loop_threads: int) -> subprocess.CompletedProcess[str]:
    opening = f"""
        import sys, threading, warnings
        import torch, torch.distributed.checkpoint as dcp
        from aiockpt.dcp import S3StorageWriter
        warnings.simplefilter("ignore")
        state = {{"large": torch.ones(2500, 1000)}}
        settings = dict(part_size=5 * 2**20, stall_timeout_s=1000.0, loop_threads={loop_threads})
        writer = S3StorageWriter("us-east-1", {place.uri("exit")!r}, **settings)
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(opening) + textwrap.dedent(source)],
        env={**os.environ, **place.server.environ()},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@needs_late_threads
@pytest.mark.parametrize("loop_threads", [1, 2])
def test_exit_waits_for_an_asynchronous_save(local: Place, loop_threads: int) -> None:
    done = program(local, "dcp.async_save(state, storage_writer=writer)", loop_threads)
    assert (done.returncode, done.stderr) == (0, "")
    assert local.keys("exit/") == ["exit/.metadata", "exit/__0_0.distcp"]


@pytest.mark.parametrize("loop_threads", [1, 2])
def test_exit_ends_a_save_that_nobody_waits_for(local: Place, local_endpoint: LocalEndpoint, loop_threads: int) -> None:
    local_endpoint.add_fault(Fault(FaultKind.STALL, "UploadPart", count=None, after_bytes=1000))
    source = """
        import urllib.request, json, os
        threading.Thread(target=dcp.save, args=(state,), kwargs={"storage_writer": writer}, daemon=True).start()
        while not json.load(urllib.request.urlopen(os.environ["ADMIN"] + "/stats"))["requests_current"]:
            pass
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADMIN", local_endpoint.admin_url)
        done = program(local, source, loop_threads)
    assert done.returncode == 0, done.stderr
    assert local.keys("exit/") == []
    assert local.uploads() == []
