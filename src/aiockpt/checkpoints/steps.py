"""Steps: the names of a run's checkpoints, and what a listing says of one. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from aiockpt.dcp.names import METADATA, rank_of, step_of
from aiockpt.errors import ConfigError

#: Eight digits: names sort as numbers do up to step 99,999,999.
NAME = "step-{:08d}"

_RANK_METADATA = re.compile(r"__(\d{1,9})\.metadata", re.ASCII)


@dataclass(frozen=True, slots=True)
class Step:
    """A checkpoint of a run.

    Attributes:
        step: its number.
        name: of its folder in the run.
        uri: where it is.
        complete: whether a load finds it; if not, it is being written, or a killed writer left it.
        modified: when it was committed, by the service's clock; None: it is not complete, or the service does not say.
    """

    step: int
    name: str
    uri: str
    complete: bool
    modified: datetime | None = None


def check_template(template: str) -> None:
    """Make sure that a template gives names from which the step can be read.

    Raises:
        ConfigError: it does not.
    """
    try:
        names = [template.format(step) for step in (0, 7, 123_456_789_012)]
    except (IndexError, KeyError, ValueError) as error:
        raise ConfigError(f"the name {template!r} is no format for a step, such as {NAME!r}: {error}") from error
    if [step_of(name) for name in names] != [0, 7, 123_456_789_012] or any("/" in name for name in names):
        raise ConfigError(f"the name {template!r} has to end with the step and to be of one folder, as {NAME!r}")


def name_of(template: str, step: int) -> str:
    """The name of a step's folder.

    Raises:
        ConfigError: the step is no number of 0 or more.
    """
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ConfigError(f"a step is a number of 0 or more, got {step!r}")
    return template.format(step)


def is_complete(names: Iterable[str]) -> bool:
    """Whether what lies directly in a folder is a complete checkpoint.

    That is so with ``.metadata``. Where each rank writes its own, every rank from 0 on must have that wrote anything
    there; that the last of them is missing cannot be seen if it left nothing.
    """
    committed: set[int] = set()
    wrote: set[int] = set()
    for name in names:
        if name == METADATA:
            return True
        if (rank := rank_of(name)) is not None:
            wrote.add(rank)
        elif found := _RANK_METADATA.fullmatch(name):
            committed.add(int(found[1]))
    return bool(committed) and wrote <= committed == set(range(len(committed)))


def what_is_there(run: str, steps: Iterable[Step]) -> str:
    """Says of a run without a complete checkpoint what it has instead."""
    incomplete = sorted(steps, key=lambda step: step.step)
    if not incomplete:
        return f"there is no checkpoint in {run}: check the path, or save one first"
    last = incomplete[-1].name
    return f"there is no complete checkpoint in {run}, only {len(incomplete)} that are not, the last one {last}"
