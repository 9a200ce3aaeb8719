"""Load and save of tensors that bytes cannot land in or leave from as they lie: what staging costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from bench import workload
from bench.contenders import OURS, PEER, Contender, installed
from bench.measure import Trial
from bench.options import Settings, benchmark
from bench.report import Bar, Report
from bench.storage import Storage, open_storage
from bench.transfer import CPU, EXTRA, GB_S, LoadTrial, Observed, SaveTrial, add_rows, write_checkpoints
from bench.worker import take_turns, workers
from bench.workload import State

#: Samples by contender and variant.
Results = dict[tuple[str, str], list[Observed]]

DIRECT, TRANSPOSED, STRIDED, CAST = "as they lie", "transposed", "every other column", "other dtype"

#: What a trial's tensors can be like. A save casts none, and transposed ones leave as they lie.
LOADS, SAVES = (DIRECT, TRANSPOSED, STRIDED, CAST), (DIRECT, STRIDED)

#: Of fp32 and bf16 tensors, which each other's are loaded into.
_OTHER = {torch.float32: torch.bfloat16, torch.bfloat16: torch.float32}


def _formed(state: State, form: str) -> State:
    return {name: _FORMS[form](tensor) for name, tensor in state.items()}


#: How a dense row-major tensor becomes one of each form; all but a cast one have its elements.
_FORMS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    DIRECT: lambda tensor: tensor,
    TRANSPOSED: lambda tensor: tensor.T.contiguous().T if tensor.dim() == 2 else tensor,
    STRIDED: lambda tensor: torch.stack((tensor, tensor), -1)[..., 0],
    CAST: lambda tensor: tensor.to(_OTHER[tensor.dtype]),
}


@dataclass
class FormedLoad(LoadTrial):
    """As ``LoadTrial``, into tensors of a form."""

    form: str = DIRECT

    def prepare(self) -> None:  # noqa: D102
        super().prepare()
        self._state = _formed(self._state, self.form)
        self._crcs = workload.crcs(self._state)


@dataclass
class FormedSave(SaveTrial):
    """As ``SaveTrial``, from tensors of a form."""

    form: str = DIRECT

    def prepare(self) -> None:  # noqa: D102
        super().prepare()
        self._state = _formed(self._state, self.form)


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


def _loads(storage: Storage, contenders: Mapping[str, Contender], settings: Settings) -> Results:
    url = write_checkpoints(storage, settings.nbytes, [1])[1]
    trials = {
        (name, f"load, {form}"): FormedLoad(contender, settings.nbytes, form)
        for form in LOADS
        for name, contender in contenders.items()
    }
    return _rounds(storage, trials, dict.fromkeys(trials, url), settings.rounds)


def _saves(storage: Storage, contenders: Mapping[str, Contender], settings: Settings) -> Results:
    trials = {
        (name, f"save, {form}"): FormedSave(contender, settings.nbytes, form=form)
        for form in SAVES
        for name, contender in contenders.items()
    }
    urls = {key: storage.url(f"saved-{number}") for number, key in enumerate(trials)}
    return _rounds(storage, trials, urls, settings.rounds)


def _rounds(
    storage: Storage, trials: Mapping[tuple[str, str], Trial], urls: Mapping[tuple[str, str], str], rounds: int
) -> Results:
    with workers(trials, storage.environ) as started:
        works = {key: partial(storage.observe, partial(worker.measure, urls[key])) for key, worker in started.items()}
        return take_turns(works, rounds=rounds)
