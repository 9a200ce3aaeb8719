"""What names of objects and folders say: metadata, data of a rank, steps. Pure."""

from __future__ import annotations

import re

#: The commit of a checkpoint; with rank-local metadata each rank has one of its own.
METADATA = ".metadata"
_RANK_METADATA = re.compile(r"__\d+\.metadata")

#: What DCP's writers call a rank's data, whatever folder a prefix strategy puts it in.
_DATA = re.compile(r"__(\d{1,9})_\d+\.distcp")

_STEP = re.compile(r"(\d{1,18})$")


def is_metadata(name: str) -> bool:
    """Whether a name (no path) is that of a checkpoint's metadata."""
    return name == METADATA or is_rank_metadata(name)


def is_rank_metadata(name: str) -> bool:
    """Whether it is that of one rank's own."""
    return _RANK_METADATA.fullmatch(name) is not None


def is_data(name: str) -> bool:
    """Whether a name (no path) is that of a checkpoint's data."""
    return name.endswith(".distcp")


def rank_of(name: str) -> int | None:
    """The rank that wrote a data object; None if its name does not say."""
    match = _DATA.fullmatch(name)
    return int(match[1]) if match else None


def step_of(path: str) -> int | None:
    """The step in a checkpoint's path: the number at its end (``step-1000``, ``ckpt_1000``, ``1000``)."""
    match = _STEP.search(path.rstrip("/"))
    return int(match[1]) if match else None
