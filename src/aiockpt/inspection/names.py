"""What names of objects and folders say of ranks and steps; which are metadata and data, ``dcp.names`` says. Pure."""

from __future__ import annotations

import re

from aiockpt.dcp.names import is_metadata

#: The commit of a checkpoint; with rank-local metadata each rank has one of its own.
METADATA = ".metadata"

#: What DCP's writers call a rank's data, whatever folder a prefix strategy puts it in.
_DATA = re.compile(r"__(\d{1,9})_\d+\.distcp", re.ASCII)

_STEP = re.compile(r"(\d{1,18})$", re.ASCII)


def is_rank_metadata(name: str) -> bool:
    """Whether a name (no path) is that of one rank's own metadata."""
    return name != METADATA and is_metadata(name)


def rank_of(name: str) -> int | None:
    """The rank that wrote a data object; None if its name does not say."""
    match = _DATA.fullmatch(name)
    return int(match[1]) if match else None


def step_of(path: str) -> int | None:
    """The step in a checkpoint's path: the number at its end (``step-1000``, ``ckpt_1000``, ``1000``)."""
    match = _STEP.search(path.rstrip("/"))
    return int(match[1]) if match else None
