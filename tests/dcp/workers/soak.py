"""Many saves and loads at once in one process, and what that leaves behind."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import time
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from aiockpt.dcp import S3StorageReader, S3StorageWriter

THREADS = 4


@dataclass(frozen=True, slots=True)
class Footprint:
    """What the process holds: resident memory, threads, open files and sockets."""

    resident_bytes: int
    threads: int
    files: int

    @classmethod
    def now(cls) -> Footprint:
        gc.collect()
        with suppress(AttributeError):  # glibc's: what its arenas keep of what was freed differs from phase to phase
            ctypes.CDLL(None).malloc_trim(0)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        threads, files = (len(list(Path("/proc/self", name).iterdir())) for name in ("task", "fd"))
        return cls(pages * os.sysconf("SC_PAGESIZE"), threads, files)

    @classmethod
    def least(cls, footprints: Sequence[Footprint]) -> Footprint:
        """The least of each: what nothing is piled up upon."""
        return cls(*map(min, zip(*map(astuple, footprints), strict=True)))


def state(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    small = {f"small {number}": torch.randn(200, generator=generator) for number in range(50)}
    scattered = torch.randn(300, 700, generator=generator).t()
    return {"large": torch.randn(1700, 1000, generator=generator), "scattered": scattered, "seed": seed} | small


def there_and_back(uri: str, seed: int, settings: dict[str, Any]) -> None:
    saved = state(seed)
    dcp.save(saved, storage_writer=S3StorageWriter("us-east-1", uri, **settings))
    loaded: dict[str, Any] = {
        name: torch.zeros_like(value) if name != "seed" else None for name, value in saved.items()
    }
    dcp.load(loaded, storage_reader=S3StorageReader("us-east-1", uri, **settings))
    assert all(torch.equal(loaded[name], saved[name]) for name in saved if name != "seed")
    assert loaded["seed"] == seed


def run(environ: dict[str, str], uri: str, settings: dict[str, Any], rounds: int, outcome: Connection) -> None:
    """Rounds of a save and a load in each of the threads; sends errors, and the footprints after each tenth of them."""
    os.environ.update(environ)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    errors: list[str] = []

    def work(thread: int, numbers: range) -> None:
        for number in numbers:
            try:
                there_and_back(f"{uri}/{thread}", 1000 * thread + number, settings)
            except BaseException:  # noqa: BLE001  # whatever it was, the test shows it
                errors.append(traceback.format_exc())
                return

    def phase(numbers: range) -> Footprint:
        threads = [threading.Thread(target=work, args=(thread, numbers)) for thread in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return Footprint.now()

    began = time.monotonic()
    bounds = [rounds * tenth // 10 for tenth in range(11)]
    footprints = [phase(range(first, last)) for first, last in pairwise(bounds)]
    outcome.send((errors, footprints, time.monotonic() - began))
