"""Load tasks: reads to be made, and what to do with the bytes once they have landed.

A task allocates its staging memory when its reads are asked for, and its ``landed`` runs on the thread that called DCP;
it may lead to further tasks (a fallback, a second try). Nothing is committed to the planner unproved. Here is what all
of them are, and share; ``whole_items`` and ``tensor_load`` have the tasks themselves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch.distributed.checkpoint.filesystem import _StorageReaderTransforms
from torch.distributed.checkpoint.planner import LoadPlanner

from aiockpt.archive.torchsave import plain
from aiockpt.dcp.items import StoredItem
from aiockpt.dcp.staging import Ring
from aiockpt.engine.download import Read
from aiockpt.errors import AiockptError, ChecksumMismatch, TargetMismatch
from aiockpt.model import ByteRange, MiB, ObjectId
from aiockpt.observe.recorder import Recorder

#: Staged stretches are about this large: long enough to fill a request, short enough that several fit the budget.
BLOCK_BYTES = 4 * MiB


def _raise(_: Sequence[StoredItem], error: AiockptError) -> None:
    raise error


@dataclass(frozen=True, slots=True)
class Loading:
    """What all tasks of one load share.

    Attributes:
        planner: gives and takes tensors.
        transforms: stream extensions.
        checksums: whether to compare CRC32s.
        size_of: an object's size; asked for before memory is made because of what is stored.
        archives: whether all of a tensor's archive must be sound, even where the metadata prove the elements in it: for
            others, who read it with torch.
        recorder: is told what they do.
        unproven: items that were loaded without, as whoever wrote them noted none (``note_unproven``).
        ring: memory for what is staged.
        on_damage: told of items that cannot be loaded, and why; by default it raises that.
    """

    planner: LoadPlanner
    transforms: _StorageReaderTransforms
    checksums: bool
    size_of: Callable[[ObjectId], int]
    recorder: Recorder
    unproven: list[StoredItem] = field(default_factory=list)
    ring: Ring = field(default_factory=Ring)
    archives: bool = False
    on_damage: Callable[[Sequence[StoredItem], AiockptError], None] = _raise

    def note_unproven(self, item: StoredItem) -> None:
        """Note that there was nothing to compare an item with."""
        self.unproven.append(item)
        self.recorder.unproven(item.wanted_nbytes)

    def has(self, source: ObjectId, end: int, nbytes: int) -> bool:
        """Whether an object has the ``nbytes`` bytes before ``end``; about a few, which do no harm, nobody asks."""
        return nbytes <= BLOCK_BYTES or end <= self.size_of(source)


class Task(ABC):
    """See the module.

    Attributes:
        items: what it is about.
        staged_bytes: memory that it takes beside the targets.
    """

    items: Sequence[StoredItem]
    staged_bytes: int = 0

    @abstractmethod
    def reads(self) -> list[Read]:
        """What to fetch, and into which memory."""

    @abstractmethod
    def landed(self) -> Iterable[Task]:
        """All reads have landed: check, copy, commit. Returns what is to be done next."""

    def foreseen(self) -> Iterable[Task]:
        """What ``landed`` most likely returns, told without the bytes; for forecasts."""
        return ()


def target_of(loading: Loading, item: StoredItem) -> torch.Tensor:
    """The tensor that the item fills, as the planner gives it.

    Raises:
        TargetMismatch: it has another shape than what is stored for it, or is sparse.
    """
    target = loading.planner.resolve_tensor(item.read).detach()
    if target.layout is not torch.strided:  # ``copy_`` would fill no more than this detached one
        raise TargetMismatch(f"{item}: the target is sparse: give a dense one, and make a sparse one of it afterwards")
    if target.size() != item.read.lengths:
        raise TargetMismatch(
            f"{item}: {tuple(item.read.lengths)} is stored for a target of shape {tuple(target.size())}: give the "
            "model the shape that was saved, or leave the tensor out of the state dict"
        )
    return target


def landable(target: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether stored bytes can go to the tensor's memory as they are."""
    return target.dtype == dtype and target.is_cpu and plain(target) and target.is_contiguous()


def tensor_at(memory: memoryview, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
    """A row-major tensor over ``memory``, which it keeps alive, or over a copy of it.

    torch takes for granted that elements are aligned: of others that are complex it copies one, and the process ends.
    """
    if not len(memory):
        return torch.empty(tuple(shape), dtype=dtype)
    octets = torch.frombuffer(memory, dtype=torch.uint8)
    aligned = octets.clone() if octets.data_ptr() % dtype.itemsize else octets
    return aligned.view(dtype).reshape(tuple(shape))


def lasting(item: StoredItem, error: AiockptError) -> AiockptError:
    """What to raise when an item has been fetched twice and is still not what was written."""
    return type(error)(
        f"{item}: {error}: damaged in the bucket, as a second try shows; restore the object or load an older checkpoint"
    )


def not_those_saved() -> ChecksumMismatch:
    """For elements that match their archive's CRC32: another checkpoint's, in an object of the same name."""
    return ChecksumMismatch("the elements are not those that were saved, whose CRC32 the metadata have")


def mismatch(start: int, block: ByteRange) -> ChecksumMismatch:
    """For a block that is not what was written; ``start``: where the object has what it is a block of."""
    where = f"bytes {start + block.start}-{start + block.end} of the object"
    return ChecksumMismatch(f"{where} do not match the CRC32 that the metadata have for them")
