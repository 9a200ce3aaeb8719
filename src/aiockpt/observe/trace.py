"""Traces: the timeline of a process in a file that chrome://tracing and https://ui.perfetto.dev open.

Events are written as they come, so memory stays what it is, and a process that dies leaves what it has done: the format
does not need its end. Each process has a file of its own.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from aiockpt.observe.exchange import Exchange, clock, unwatch_everywhere, watch_everywhere
from aiockpt.observe.recorder import Recorder
from aiockpt.observe.timeline import Event, Timeline

logger = logging.getLogger("aiockpt")


class TraceFile:
    """Writes the timeline of this process to a file. Thread-safe.

    When another process is writing there, and in a forked child, the process id is put into the name. What cannot be
    written (the disk is full) is given up with a warning: no save or load fails because of its trace.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        self._file: FileIO | None = None  # without a buffer, which a fork would copy
        self._begin(self._path)

    def close(self) -> None:
        """Write the end; what comes afterwards is dropped."""
        with self._own_lock():
            if self._file is not None:
                with self._file, suppress(OSError):  # what was written before is enough
                    self._file.write(b"\n]\n")
            self._file = None

    def began(self, exchange: Exchange) -> None:
        """A request wants a connection."""
        with self._own_lock():
            self._write(self._timeline.began(exchange))

    def ended(self, exchange: Exchange) -> None:
        """It is over."""
        with self._own_lock():
            self._write(self._timeline.ended(exchange))

    def gauged(self, name: str, value: float) -> None:
        """Something measured."""
        with self._own_lock():
            self._write(self._timeline.gauged(name, value, clock()))

    def finished(self, recorder: Recorder) -> None:
        """A save or load is over."""
        with self._own_lock():
            self._write(self._timeline.finished(recorder))

    def _begin(self, path: Path) -> None:
        self._pid = os.getpid()
        self._timeline = Timeline(self._pid)
        self._file = _claim(path) or _claim(_with_pid(path, self._pid))
        self._separator = "[\n"
        self._write(self._timeline.head())

    def _own_lock(self) -> threading.Lock:
        """The lock; in a forked child, where the parent's may be held for ever, one of its own, and a file with it."""
        if self._pid != os.getpid():
            self._lock = threading.Lock()
            if self._file is not None:
                self._file.close()
                self._begin_in_child()
        return self._lock

    def _begin_in_child(self) -> None:
        try:
            self._begin(_with_pid(self._path, os.getpid()))
        except OSError as error:
            self._give_up(error)

    def _write(self, events: Sequence[Event]) -> None:
        if self._file is None or not events:
            return
        text = ",\n".join(json.dumps(event, separators=(",", ":")) for event in events)
        try:
            self._file.write(f"{self._separator}{text}".encode())
        except OSError as error:
            self._give_up(error)
        self._separator = ",\n"

    def _give_up(self, error: OSError) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None
        logger.warning("the trace %s ends here: %s", self._path, error)


def _with_pid(path: Path, pid: int) -> Path:
    return path.with_name(f"{path.stem}.{pid}{path.suffix}")


def _claim(path: Path) -> FileIO | None:
    """Open a file for this process alone and empty it; None: another process is writing it."""
    file = path.open("ab", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    if os.fstat(file.fileno()).st_size:  # a device or a pipe has none, and cannot be cut
        file.truncate(0)
    return file


@contextmanager
def trace(path: str | os.PathLike[str]) -> Iterator[None]:
    """Write a timeline of all requests, saves and loads of this process that begin in this block.

    One track a connection, with each request's waiting, sending, first byte and body; counters of the requests in
    flight and of the present limits. Open the file in https://ui.perfetto.dev or chrome://tracing.

    Args:
        path: of the file, which is replaced. While another process writes there, as other ranks may, its name gets the
            process id: ``trace.json`` becomes ``trace.<pid>.json``.

    Raises:
        OSError: the file cannot be opened.
    """
    file = TraceFile(path)
    watch_everywhere(file)
    try:
        yield
    finally:
        unwatch_everywhere(file)
        file.close()


_of_process: TraceFile | None = None


def trace_process(path: str) -> None:
    """Write a timeline of this process until it ends; only the first call counts. What cannot be opened is logged."""
    global _of_process  # noqa: PLW0603  # one per process is the point
    if _of_process is not None:
        return
    try:
        _of_process = TraceFile(path)
    except OSError as error:
        logger.warning("AIOCKPT_TRACE: no trace is written: %s", error)
        return
    watch_everywhere(_of_process)
    atexit.register(_of_process.close)
