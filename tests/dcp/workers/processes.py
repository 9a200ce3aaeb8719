"""Processes that are interrupted, forked and ended while they save and load."""

from __future__ import annotations

import os
import signal
import threading
import traceback
import warnings
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from aiockpt.dcp import S3StorageReader, S3StorageWriter

#: Nothing here waits for a stall to end by itself; parts are small, so that there are many.
SETTINGS: dict[str, Any] = {"stall_timeout_s": 1000.0, "part_size": 5 * 2**20}


def state(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {"large": torch.randn(2500, 1000, generator=generator), "small": torch.randn(33, generator=generator)}


def save(uri: str, seed: int = 0) -> None:
    dcp.save(state(seed), storage_writer=S3StorageWriter("us-east-1", uri, **SETTINGS))


def is_loaded(uri: str, seed: int = 0) -> bool:
    target = {name: torch.zeros_like(tensor) for name, tensor in state(seed).items()}
    dcp.load(target, storage_reader=S3StorageReader("us-east-1", uri, **SETTINGS))
    return all(torch.equal(target[name], tensor) for name, tensor in state(seed).items())


def interrupted(uri: str, control: Connection, verb: str) -> str:
    """Ctrl-C while this is under way: what came of it, and that the process can go on."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    control.send("begins")
    try:
        save(uri, seed=1) if verb == "save" else is_loaded(uri)
    except BaseException as error:  # noqa: BLE001  # DCP's exception, made of whatever it was
        control.send(type(error).__name__)
    assert control.recv() == "faults are cleared"
    return "" if is_loaded(uri) else "the process cannot load any more"


def in_child(work: Any) -> bool:
    """Whether ``work()`` is true in a forked child."""
    child = os.fork()
    if not child:
        code = 1
        try:
            code = 0 if work() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def forked(uri: str, control: Connection, when: str) -> str:
    """A child loads, and its child; then the parent does."""
    if when == "idle":
        is_loaded(uri)
    thread, loaded = threading.Thread(), []
    if when == "mid-load":
        thread = threading.Thread(target=lambda: loaded.append(is_loaded(f"{uri}-stalled")))
        thread.start()
        control.send("begins")
        assert control.recv() == "it is stalled"
    child = in_child(lambda: is_loaded(uri) and in_child(lambda: is_loaded(uri)))
    if when == "mid-load":
        control.send("forked")
        thread.join()
    parent = is_loaded(uri)
    return "" if child and parent and loaded in ([], [True]) else f"child {child}, parent {parent}, thread {loaded}"


def run(environ: dict[str, str], verb: str, uri: str, argument: str, loop_threads: int, control: Connection) -> None:
    """The process: do it, and send what went wrong at the end, ``""`` if nothing did."""
    try:
        os.environ.update(environ)
        SETTINGS["loop_threads"] = loop_threads
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        control.send({"interrupted": interrupted, "forked": forked}[verb](uri, control, argument))
    except BaseException:  # noqa: BLE001  # whatever it was, the test shows it
        control.send(traceback.format_exc())
