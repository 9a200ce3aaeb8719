"""Processes that save, to be killed: forked from one in which everything is ready, so that each takes little time."""

from __future__ import annotations

import asyncio
import os
import traceback
import warnings
from contextlib import suppress
from functools import cache
from multiprocessing.connection import Connection

import torch
from botocore.loaders import JSONFileLoader

from aiockpt.config import S3ClientConfig
from aiockpt.dcp import S3StorageWriter
from aiockpt.engine.engine import LoopEngine
from aiockpt.errors import NotFound
from aiockpt.model import ObjectId
from dcp.checkpoints import save
from dcp.gates import options, state


def save_state(uri: str, value: int) -> None:
    """Two objects, one of two parts: as many kinds of requests as a save makes."""
    save(state(value), S3StorageWriter("us-east-1", uri, **options()))


def serve(environ: dict[str, str], orders: Connection) -> None:
    """Says that it is ready, and forks a process for each ``(uri, value)``: its id, and in the end its exit status."""
    os.environ.update(environ)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    read = cache(JSONFileLoader().load_file)
    setattr(JSONFileLoader, "load_file", lambda _, path: read(path))  # noqa: B010  # as a method cannot be assigned
    asyncio.run(_warm_up())
    orders.send("ready")
    while (order := orders.recv()) is not None:
        process = os.fork()
        if not process:
            _run(*order)
        orders.send(process)
        orders.send(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))


async def _warm_up() -> None:
    """Have botocore read its models."""
    async with LoopEngine(S3ClientConfig(), "us-east-1") as engine:
        with suppress(NotFound):
            await engine.head(ObjectId("bucket", "nothing"))


def _run(uri: str, value: int) -> None:
    try:
        save_state(uri, value)
    except BaseException:  # noqa: BLE001  # the test shows it
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
