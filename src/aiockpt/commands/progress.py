"""A progress bar with rate and remaining time, for what takes longer than a second."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

#: What is over sooner needs no bar.
DELAY_S = 1.0


class Bar:
    """See the module. A context manager; ``advance`` may be called from any thread.

    Args:
        title: what is being done.
        total_bytes: of all of it; None: not known.
        console: where it is drawn; nothing is when that is no terminal.
    """

    def __init__(self, title: str, total_bytes: int | None, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(title, total=total_bytes)
        self._begun_s = time.monotonic()
        self._shown = False

    def advance(self, nbytes: int, total_bytes: int | None = None) -> None:
        """So many more bytes are done; ``total_bytes``: of all, where that becomes known later."""
        self._progress.update(self._task, advance=nbytes, total=total_bytes)
        if not self._shown and time.monotonic() - self._begun_s > DELAY_S:
            self._shown = True
            self._progress.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()
