"""Load and save of tensors that bytes cannot land in or leave from as they lie: what staging costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch

from aiockpt.crc import crc32
from aiockpt.dcp.staging import blocks
from aiockpt.model import MiB
from bench import workload
from bench.contenders import OURS, PEER, Contender, installed
from bench.options import Settings, benchmark
from bench.report import Bar, Report
from bench.storage import Storage, open_storage
from bench.transfer import CPU, EXTRA, GB_S, LoadTrial, Observed, SaveTrial, WrongBytes, add_rows, write_checkpoints
from bench.worker import take_turns, workers

DIRECT, TRANSPOSED, STRIDED, CAST = "as they lie", "transposed", "every other column", "other dtype"

#: What a trial's tensors can be like. A save casts none, and transposed ones leave as they lie.
LOADS, SAVES = (DIRECT, TRANSPOSED, STRIDED, CAST), (DIRECT, STRIDED)

#: Of fp32 and bf16 tensors, which each other's are loaded into.
_OTHER = {torch.float32: torch.bfloat16, torch.bfloat16: torch.float32}


def _formed(tensor: torch.Tensor, form: str) -> torch.Tensor:
    if form == TRANSPOSED:
        return tensor.T.contiguous().T if tensor.dim() == 2 else tensor
    if form == STRIDED:
        return torch.stack((tensor, tensor), -1)[..., 0]
    return tensor.to(_OTHER[tensor.dtype]) if form == CAST else tensor


def _crc(tensor: torch.Tensor) -> int:
    """Of the elements in row-major order, copied in small blocks, which leave no memory behind."""
    crc = 0
    for block in blocks(tensor, MiB):
        copied = block.contiguous()
        crc = crc32(workload.memory_of(copied), crc)
    return crc


@dataclass
class FormedLoad(LoadTrial):
    """As ``LoadTrial``, into tensors of a form."""

    form: str = DIRECT

    def prepare(self) -> None:  # noqa: D102
        super().prepare()
        self._state = {name: _formed(tensor, self.form) for name, tensor in self._state.items()}
        self._crcs = self._sums()

    def _sums(self) -> dict[str, int]:
        return {name: _crc(tensor) for name, tensor in self._state.items()}

    def after(self, url: str) -> None:  # noqa: D102
        if self._sums() != self._crcs:
            raise WrongBytes(url)


@dataclass
class FormedSave(SaveTrial):
    """As ``SaveTrial``, from tensors of a form."""

    form: str = DIRECT

    def prepare(self) -> None:  # noqa: D102
        super().prepare()
        self._state = {name: _formed(tensor, self.form) for name, tensor in self._state.items()}


@benchmark(rounds=3, contenders=(OURS, PEER))
def staged(settings: Settings) -> Report:
    """Measure load and save of mixed tensors that must be staged: strided ones, and loads into other dtypes."""
    report = Report("staged tensors", plotted=(GB_S, CPU, EXTRA))
    contenders = installed(settings.contenders)
    standing = len(SAVES) * len(contenders)
    with open_storage(settings.place, reserve_bytes=(standing + 2) * settings.nbytes) as storage:
        add_rows(report, _loads(storage, contenders, settings))
        add_rows(report, _saves(storage, contenders, settings))
    for variant in [*(f"load, {form}" for form in LOADS), *(f"save, {form}" for form in SAVES)]:
        most = report.median(OURS, variant, EXTRA)
        report.bars.append(Bar.at_most(f"{variant}: extra memory, MiB", 64, most))
    report.remarks.append("GB/s and CPU are by the bytes that are stored.")
    return report


def _loads(
    storage: Storage, contenders: Mapping[str, Contender], settings: Settings
) -> dict[tuple[str, str], list[Observed]]:
    url = write_checkpoints(storage, settings.nbytes, [1])[1]
    trials = {
        (name, f"load, {form}"): FormedLoad(contender, settings.nbytes, form)
        for form in LOADS
        for name, contender in contenders.items()
    }
    with workers(trials, storage.environ) as started:
        works = {key: partial(storage.observe, partial(worker.measure, url)) for key, worker in started.items()}
        return take_turns(works, rounds=settings.rounds)


def _saves(
    storage: Storage, contenders: Mapping[str, Contender], settings: Settings
) -> dict[tuple[str, str], list[Observed]]:
    trials = {
        (name, f"save, {form}"): FormedSave(contender, settings.nbytes, form=form)
        for form in SAVES
        for name, contender in contenders.items()
    }
    with workers(trials, storage.environ) as started:
        works = {
            key: partial(storage.observe, partial(worker.measure, storage.url(f"saved-{number}")))
            for number, (key, worker) in enumerate(started.items())
        }
        return take_turns(works, rounds=settings.rounds)
