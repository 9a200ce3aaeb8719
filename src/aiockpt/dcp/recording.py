"""What an adapter records of its saves or loads, one after the other: the present one, and the last one's report."""

from __future__ import annotations

import logging
import time
from typing import Any

from aiockpt.bridge import loop_cpu_s
from aiockpt.observe.otel import watch_if_used
from aiockpt.observe.recorder import Recorder
from aiockpt.observe.report import Kind, Progress, Report

logger = logging.getLogger("aiockpt")


class Recording:
    """One adapter's. Pickles without the present save or load, which goes on where it began.

    Attributes:
        report: of the last one that succeeded; None before.
    """

    def __init__(self, kind: Kind) -> None:
        self._kind: Kind = kind
        self._recorder: Recorder | None = None
        self.report: Report | None = None

    def begin(self, uri: str, rank: int | None) -> Recorder:
        """Another one begins."""
        watch_if_used()
        self.report = None
        self._recorder = Recorder(self._kind, uri, rank or 0, cpu=_cpu_s)
        return self._recorder

    def current(self, uri: str) -> Recorder:
        """The present one; begun now if DCP has left out the calls before."""
        return self._recorder or self.begin(uri, None)

    def finish(self) -> None:
        """All is done, or all but what comes with another call of this: the report is there, and logged."""
        assert self._recorder is not None
        self.report = self._recorder.finish()
        logger.info("%s", self.report)

    def progress(self) -> Progress | None:
        """How far the present one is, or the last one was; None before the first."""
        return self._recorder.progress() if self._recorder is not None else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_recorder": None}


def _cpu_s() -> float:
    """CPU seconds of this thread and of the loop threads."""
    return time.thread_time() + sum(loop_cpu_s().values())
