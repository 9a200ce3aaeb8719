"""aiockpt: asyncio-native checkpoint I/O for PyTorch on S3.

Names are imported when they are first used: ``import aiockpt`` itself costs nothing, and only those that need torch
import it.
"""

from __future__ import annotations

import importlib
import logging
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiockpt.awaitable.engine import Engine
    from aiockpt.awaitable.functions import load, load_tensors, save, save_in_background
    from aiockpt.blocking.writing import S3Writer
    from aiockpt.checkpoint import S3Checkpoint
    from aiockpt.checkpoints.awaited import Checkpoints
    from aiockpt.checkpoints.blocking import BlockingCheckpoints
    from aiockpt.config import S3ClientConfig
    from aiockpt.errors import AiockptError, S3Exception
    from aiockpt.observe.report import Progress, Report
    from aiockpt.observe.trace import trace
    from aiockpt.s3reader import S3Reader, S3ReaderConstructor

__all__ = [
    "AiockptError",
    "BlockingCheckpoints",
    "Checkpoints",
    "Engine",
    "Progress",
    "Report",
    "S3Checkpoint",
    "S3ClientConfig",
    "S3Exception",
    "S3Reader",
    "S3ReaderConstructor",
    "S3Writer",
    "__version__",
    "load",
    "load_tensors",
    "save",
    "save_in_background",
    "trace",
]

__version__ = version("aiockpt")

logging.getLogger("aiockpt").addHandler(logging.NullHandler())  # quiet unless the program says otherwise

_HOMES = {
    "AiockptError": "aiockpt.errors",
    "BlockingCheckpoints": "aiockpt.checkpoints.blocking",
    "Checkpoints": "aiockpt.checkpoints.awaited",
    "Engine": "aiockpt.awaitable.engine",
    "Progress": "aiockpt.observe.report",
    "Report": "aiockpt.observe.report",
    "S3Checkpoint": "aiockpt.checkpoint",
    "S3ClientConfig": "aiockpt.config",
    "S3Exception": "aiockpt.errors",
    "S3Reader": "aiockpt.s3reader",
    "S3ReaderConstructor": "aiockpt.s3reader",
    "S3Writer": "aiockpt.blocking.writing",
    "load": "aiockpt.awaitable.functions",
    "load_tensors": "aiockpt.awaitable.functions",
    "save": "aiockpt.awaitable.functions",
    "save_in_background": "aiockpt.awaitable.functions",
    "trace": "aiockpt.observe.trace",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'aiockpt' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
