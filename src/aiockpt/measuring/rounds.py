"""Rounds of ``dcp.save`` and ``dcp.load`` of one state dict, in this process: wall time and CPU time of all threads."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed.checkpoint as dcp

from aiockpt.awaitable.checkpoint_calls import own_errors
from aiockpt.blocking.store import Store
from aiockpt.dcp import S3StorageReader, S3StorageWriter
from aiockpt.dcp.delete import delete_checkpoint
from aiockpt.errors import ChecksumMismatch
from aiockpt.measuring.workload import State
from aiockpt.model import ObjectId


@dataclass(frozen=True, slots=True)
class Sample:
    """What moving ``nbytes`` took, in seconds of wall time and of CPU time."""

    nbytes: int
    seconds: float
    cpu_s: float

    @property
    def gb_per_s(self) -> float:
        """Gigabytes a second."""
        return self.nbytes / 1e9 / self.seconds

    @property
    def cpu_s_per_gb(self) -> float:
        """CPU seconds a gigabyte."""
        return self.cpu_s / self.nbytes * 1e9


class Rounds:
    """Saves a state dict, loads it again, compares, and deletes it.

    Args:
        store: where.
        at: the checkpoint that is written.
        state: what is saved.
    """

    def __init__(self, store: Store, at: ObjectId, state: State) -> None:
        self._store = store
        self._at = at
        self._state = state
        self._target = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        self._nbytes = sum(tensor.nbytes for tensor in state.values())

    def run(self) -> tuple[Sample, Sample]:
        """One round: of the save, and of the load.

        Raises:
            ChecksumMismatch: other bytes came back.
            AiockptError: the save or load failed.
        """
        saved = self._timed(lambda: dcp.save(self._state, storage_writer=self._writer(), no_dist=True))
        try:
            for tensor in self._target.values():
                tensor.zero_()
            loaded = self._timed(lambda: dcp.load(self._target, storage_reader=self._reader(), no_dist=True))
            self._compare()
        finally:
            self._store.run(lambda engine: delete_checkpoint(engine, self._at))
        return saved, loaded

    def _timed(self, work: Callable[[], object]) -> Sample:
        cpu_s, start_s = time.process_time(), time.perf_counter()
        with warnings.catch_warnings(), own_errors(alone=True):
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # it is meant to be
            work()
        return Sample(self._nbytes, time.perf_counter() - start_s, time.process_time() - cpu_s)

    def _compare(self) -> None:
        for name, tensor in self._state.items():
            if not torch.equal(tensor, self._target[name]):
                raise ChecksumMismatch(f"{self._at.uri}: {name!r} came back other than it was saved")

    def _writer(self) -> S3StorageWriter:
        return S3StorageWriter(self._store.region, self._at.uri, self._store.config)  # type: ignore[arg-type]  # None: botocore's choice

    def _reader(self) -> S3StorageReader:
        return S3StorageReader(self._store.region, self._at.uri, self._store.config)  # type: ignore[arg-type]  # likewise
