"""What a save in another process tells of it; here, as that process cannot import the test files."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import DefaultSavePlanner


def nice_of(thread: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, thread)


class TellingPlanner(DefaultSavePlanner):
    """Writes the nice value of the thread that calls it, in whatever process, to a file."""

    def __init__(self, told: Path) -> None:
        super().__init__()
        self._told = told

    def resolve_data(self, write_item: Any) -> Any:
        self._told.write_text(str(nice_of(threading.get_native_id())))
        return super().resolve_data(write_item)
