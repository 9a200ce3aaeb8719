"""Remnants: what killed writers may have left, and what of it may go. Pure.

Whatever is in doubt stays. In a checkpoint's folder, what standing metadata refer to is the checkpoint; the rest (data
objects that none refer to, pending uploads) is a killed writer's, or a running one's that has not committed yet. A
running save shows by what it did last, not by all that it did: its first objects may be a day old while it still sends.
So the rest goes all together or not at all: once the youngest sign of life in it is older than the grace.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from aiockpt.dcp.names import folder_of

UNREFERENCED = "no metadata refer to it"
ABANDONED = "an upload that was neither completed nor aborted"


@dataclass(frozen=True, slots=True)
class Standing:
    """Metadata that stand.

    Attributes:
        key: where.
        data: keys of the objects that they refer to; None: they could not be read, so that might be anything below
            their folder.
        trouble: why they could not be read.
    """

    key: str
    data: frozenset[str] | None
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Remnant:
    """A data object, or a pending upload of one.

    Attributes:
        key: where it is, or would be.
        nbytes: its size, of an upload that of its parts.
        touched: when its writer last did something to it, by the service's clock; None: the service does not say.
        upload_id: of an upload; ``""``: it is an object.
    """

    key: str
    nbytes: int
    touched: datetime | None
    upload_id: str = ""

    @property
    def name(self) -> tuple[str, str]:
        """What tells it from others, whatever its writer does to it."""
        return self.key, self.upload_id


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a remnant, and why."""

    remnant: Remnant
    goes: bool
    reason: str


def by_checkpoint(folder: str, keys: Iterable[str], remnants: Iterable[Remnant]) -> dict[str, list[Remnant]]:
    """Remnants below ``folder``, by the folder of the checkpoint that they belong to.

    With any checkpoint's name directly in it, ``folder`` is a checkpoint, and all is its; otherwise it is a run, whose
    checkpoints are the folders directly below.

    Args:
        folder: ``""`` or with a slash at its end.
        keys: of metadata below it.
        remnants: those below it.
    """
    remnants = list(remnants)
    everything = [*keys, *(remnant.key for remnant in remnants)]
    if any(folder_of(key) == folder for key in everything):
        return {folder: remnants} if remnants else {}
    groups: defaultdict[str, list[Remnant]] = defaultdict(list)
    for remnant in remnants:
        name, _, _ = remnant.key.removeprefix(folder).partition("/")
        groups[f"{folder}{name}/"].append(remnant)
    return dict(groups)


def judge(
    remnants: Sequence[Remnant], standing: Sequence[Standing], grace: timedelta, now: datetime | None
) -> list[Verdict]:
    """What of one checkpoint's remnants may go.

    Args:
        remnants: all of them.
        standing: the metadata in their folders and in all above.
        grace: for how long nothing may have happened; zero: nobody is writing, on the caller's word.
        now: what time it is for the service; None: it does not say.

    Returns:
        Verdicts about what no metadata refer to, in the order of ``remnants``.
    """
    referred = {key for one in standing for key in one.data or ()}
    unreadable = {folder_of(one.key): one for one in standing if one.data is None}
    left = [remnant for remnant in remnants if remnant.upload_id or remnant.key not in referred]
    busy = _sign_of_life(left, grace, now)
    return [_verdict(remnant, unreadable, busy) for remnant in left]


def _verdict(remnant: Remnant, unreadable: Mapping[str, Standing], busy: str) -> Verdict:
    if busy:
        return Verdict(remnant, goes=False, reason=busy)
    if remnant.upload_id:
        return Verdict(remnant, goes=True, reason=ABANDONED)
    for folder, one in unreadable.items():
        if remnant.key.startswith(folder):
            return Verdict(remnant, goes=False, reason=f"{one.key} may refer to it, and cannot be read: {one.trouble}")
    return Verdict(remnant, goes=True, reason=UNREFERENCED)


def _sign_of_life(left: Sequence[Remnant], grace: timedelta, now: datetime | None) -> str:
    """Why a writer may be at work among ``left``; ``""``: none is."""
    if not grace or not left:
        return ""
    if now is None:
        return "the service does not say what time it is"
    undated = [remnant.key for remnant in left if remnant.touched is None]
    if undated:
        return f"the service does not say how old {undated[0]} is"
    age, key = min((now - remnant.touched, remnant.key) for remnant in left if remnant.touched is not None)
    return f"a writer may be at work: {key} is {_text(age)} old, less than {_text(grace)}" if age < grace else ""


def _text(age: timedelta) -> str:
    return str(timedelta(seconds=max(0, int(age.total_seconds()))))
