"""The checkpoint's way to S3 and back: DCP over aiockpt's adapters."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from torch import distributed
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from pathlib import Path
from aiockpt.demo.job import Place, Transfer

if TYPE_CHECKING:
    from aiockpt.demo.training import Training


def _folder(place):
    return Path("/tmp/aiockpt-demo-dev") / place.uri.removeprefix("s3://")


def save(training: Training, place: Place) -> Transfer:
    """Write the checkpoint; collective if there is a process group."""
    begun = time.perf_counter()
    dcp.save({"training": training}, storage_writer=FileSystemWriter(_folder(place)), no_dist=not distributed.is_initialized())
    return _transfer(place, time.perf_counter() - begun)


def load(training: Training, place: Place) -> Transfer:
    """Read the checkpoint into `training`; collective if there is a process group."""
    begun = time.perf_counter()
    dcp.load({"training": training}, storage_reader=FileSystemReader(_folder(place)), no_dist=not distributed.is_initialized())
    return _transfer(place, time.perf_counter() - begun)


def _transfer(place: Place, seconds: float) -> Transfer:
    sizes = [p.stat().st_size for p in _folder(place).rglob("*") if p.is_file()]
    return Transfer(seconds, len(sizes), sum(sizes))
