"""Worker processes: one for each contender, alive for all rounds, so that CPU and memory are attributable."""

from __future__ import annotations

import multiprocessing
import os
import traceback
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Any, Self, TypeVar

from bench.measure import Meter, Sample, Trial

#: Imported once, for all workers: each would take seconds for it (torch imports _dynamo late). No contender is here.
_PRELOADED = ["torch.distributed.checkpoint", "torch.distributed.tensor", "torch._dynamo"]

Key = TypeVar("Key", bound=Hashable)
T = TypeVar("T")


class TrialFailed(Exception):
    """A trial raised in its process; the message is its traceback."""


class Worker:
    """A fresh process that holds one trial; a context manager that ends it.

    Args:
        trial: prepared there, before the first measurement.
        environ: added to the process's environment before that.
    """

    def __init__(self, trial: Trial, environ: Mapping[str, str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, trial, dict(environ)))
        self._process.start()
        theirs.close()

    def ready(self) -> Self:
        """Wait until the trial is prepared."""
        self.finish()
        return self

    def measure(self, *args: Any) -> Sample:
        """Measure the trial once."""
        self.start(*args)
        sample: Sample = self.finish()
        return sample

    def start(self, *args: Any) -> None:
        """Begin a measurement, without waiting for it."""
        self._pipe.send(args)

    def finish(self) -> Any:
        """Wait for what was begun.

        Raises:
            TrialFailed: the trial raised, or its process is gone.
        """
        try:
            outcome = self._pipe.recv()
        except EOFError as exc:
            raise TrialFailed("the process ended by itself") from exc
        if isinstance(outcome, TrialFailed):
            raise outcome
        return outcome

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@contextmanager
def workers(trials: Mapping[Key, Trial], environ: Mapping[str, str]) -> Iterator[dict[Key, Worker]]:
    """A ready worker for each trial; they get ready at the same time."""
    with ExitStack() as stack:
        started = {key: stack.enter_context(Worker(trial, environ)) for key, trial in trials.items()}
        yield {key: worker.ready() for key, worker in started.items()}


def take_turns(works: Mapping[Key, Callable[[], T]], *, rounds: int, warmup: int = 1) -> dict[Key, list[T]]:
    """The results of all works, round by round, each round beginning with the next of them; without the warm-up."""
    results: dict[Key, list[T]] = {key: [] for key in works}
    keys = list(works)
    for number in range(warmup + rounds):
        first = number % len(keys)
        for key in keys[first:] + keys[:first]:
            result = works[key]()
            if number >= warmup:
                results[key].append(result)
    return results


def measure_together(group: Sequence[Worker], *args: Any) -> list[Sample]:
    """Measure the trials of several workers at the same time."""
    for worker in group:
        worker.start(*args)
    return [worker.finish() for worker in group]


def _serve(pipe: Connection, trial: Trial, environ: dict[str, str]) -> None:
    """The process: prepare, then a measurement for each message, until the pipe ends."""
    os.environ.update(environ)
    warnings.simplefilter("ignore")  # what the peers and torch have to say about themselves
    try:
        trial.prepare()
        meter = Meter(trial)
        pipe.send(None)
        while True:
            pipe.send(meter.measure(*pipe.recv()))
    except EOFError:
        pass
    except BaseException:  # noqa: BLE001  # told to the parent; DCP's exceptions are no Exceptions
        pipe.send(TrialFailed(traceback.format_exc()))
