"""Names of a checkpoint and below it: which are metadata, which are data, and what they say. Pure.

The contract's names: ``.metadata``, or ``__<rank>.metadata`` where each rank keeps its own; data is
``<prefix><n>.distcp`` with whatever prefix the strategy gives, folders included.
"""

from __future__ import annotations

import re

#: The commit of a checkpoint; with rank-local metadata each rank has one of its own.
METADATA = ".metadata"

_METADATA = re.compile(r"(?:__\d{1,9})?\.metadata", re.ASCII)
_TEMPORARY = re.compile(r"(?:__\d{1,9})?\.metadata\.tmp", re.ASCII)
_DATA = re.compile(r".*?(\d{1,18})\.distcp", re.ASCII | re.DOTALL)
_NUMBERED = re.compile(r"(\d{1,18})\.distcp", re.ASCII)

#: What DCP's writers call a rank's data, whatever folder a prefix strategy puts it in.
_RANKS_DATA = re.compile(r"__(\d{1,9})_\d{1,18}\.distcp", re.ASCII)

_STEP = re.compile(r"(\d{1,18})$", re.ASCII)


def folder_of(key: str) -> str:
    """The key up to and with its last slash; ``""`` if it has none."""
    return key[: key.rfind("/") + 1]


def folders_above(folder: str) -> list[str]:
    """``folder`` (empty, or with a slash at its end) and every one above it, the bucket's root (``""``) last."""
    above = [folder]
    while above[-1]:
        above.append(folder_of(above[-1][:-1]))
    return above


def is_metadata(key: str) -> bool:
    """Whether it is the metadata of a checkpoint, or of one of its ranks."""
    return _METADATA.fullmatch(key, len(folder_of(key))) is not None


def is_rank_metadata(key: str) -> bool:
    """Whether it is one rank's own metadata."""
    return is_metadata(key) and key[len(folder_of(key)) :] != METADATA


def is_temporary_metadata(key: str) -> bool:
    """Whether it is what stock DCP writes first and then renames to the metadata."""
    return _TEMPORARY.fullmatch(key, len(folder_of(key))) is not None


def is_data(key: str) -> bool:
    """Whether it is an object with a checkpoint's data."""
    return _DATA.fullmatch(key, len(folder_of(key))) is not None


def data_number(key: str, prefix: str) -> int | None:
    """The number that the data object ``key`` has among those of ``prefix``; None if it is none of them."""
    name = _NUMBERED.fullmatch(key, len(prefix)) if key.startswith(prefix) else None
    return int(name[1]) if name else None


def rank_of(key: str) -> int | None:
    """The rank that wrote a data object; None if its name does not say."""
    match = _RANKS_DATA.fullmatch(key, len(folder_of(key)))
    return int(match[1]) if match else None


def step_of(path: str) -> int | None:
    """The step in a checkpoint's path: the number at its end (``step-1000``, ``ckpt_1000``, ``1000``)."""
    match = _STEP.search(path.rstrip("/"))
    return int(match[1]) if match else None
