"""What differs between two checkpoints, from their metadata alone. Pure.

Values are compared by the CRC32s of blocks that metadata have for tensors and objects; where one checkpoint has none,
or has them of other pieces, metadata cannot tell, and that is said.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from aiockpt.dcp.proof import form_of
from aiockpt.inspection.summary import Blob, Summary, Tensor


class Values(enum.Enum):
    """How the values of two things compare."""

    SAME = enum.auto()
    DIFFERENT = enum.auto()
    UNKNOWN = enum.auto()


@dataclass(frozen=True, slots=True)
class Diff:
    """What differs between two checkpoints; all sorted by name.

    Attributes:
        removed, added: names that only the first has, or only the second.
        reshaped: tensors of another dtype or shape, as in the first and as in the second; objects that became tensors,
            or the other way round, are removed and added.
        different: names of the same form with other values.
        unknown: names of the same form whose values the metadata cannot compare.
        same: how many names are the same in both.
    """

    removed: Sequence[str]
    added: Sequence[str]
    reshaped: Sequence[tuple[Tensor, Tensor]]
    different: Sequence[str]
    unknown: Sequence[str]
    same: int

    @property
    def is_empty(self) -> bool:
        """Whether no difference is known."""
        return not (self.removed or self.added or self.reshaped or self.different)

    def resolved(self, values: Mapping[str, bool]) -> Diff:
        """With values that were looked at: whether they are the same, by name."""
        settled = [name for name in self.unknown if name in values]
        return replace(
            self,
            different=sorted([*self.different, *(name for name in settled if not values[name])]),
            unknown=[name for name in self.unknown if name not in values],
            same=self.same + sum(values[name] for name in settled),
        )


def diff(one: Summary, other: Summary) -> Diff:
    """Compare two checkpoints."""
    before, after = _by_name(one), _by_name(other)
    both = sorted(name for name in before.keys() & after.keys() if type(before[name]) is type(after[name]))
    values = {name: _compare(before[name], after[name]) for name in both}
    named = {kind: [name for name in both if values[name] is kind] for kind in (None, *Values)}
    return Diff(
        removed=sorted(before.keys() - values.keys()),
        added=sorted(after.keys() - values.keys()),
        reshaped=[
            (first, second)
            for first, second in ((before[name], after[name]) for name in named[None])
            if isinstance(first, Tensor) and isinstance(second, Tensor)
        ],
        different=named[Values.DIFFERENT],
        unknown=named[Values.UNKNOWN],
        same=len(named[Values.SAME]),
    )


def _by_name(summary: Summary) -> dict[str, Tensor | Blob]:
    entries: list[Tensor | Blob] = [*summary.tensors, *summary.blobs]
    return {entry.name: entry for entry in entries}


def _compare(one: Tensor | Blob, other: Tensor | Blob) -> Values | None:
    """Two things of one name; None: they have another form, so that there are no values to compare."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return None
        if 0 in one.shape:
            return Values.SAME
        if [(c.offsets, c.sizes) for c in one.chunks] != [(c.offsets, c.sizes) for c in other.chunks]:
            return Values.UNKNOWN
        return _together([_by_proof(a.proof, b.proof) for a, b in zip(one.chunks, other.chunks, strict=True)])
    assert isinstance(one, Blob)
    assert isinstance(other, Blob)
    return _by_proof(one.proof, other.proof)


def _by_proof(one: bytes | None, other: bytes | None) -> Values:
    """By two proofs as metadata hold them: the form, then the CRC32s; see ``dcp.proof``."""
    if not one or not other or form_of(one) != form_of(other):
        return Values.UNKNOWN
    return Values.SAME if one == other else Values.DIFFERENT


def _together(parts: Sequence[Values]) -> Values:
    for kind in (Values.DIFFERENT, Values.UNKNOWN):
        if kind in parts:
            return kind
    return Values.SAME
