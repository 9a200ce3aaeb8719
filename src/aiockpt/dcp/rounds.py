"""Rounds: a rank's files are written under free numbers, and what finds its number taken, in another round. Pure.

A number can be taken although it was free when the path was looked at: by another writer who looked at the same moment.
Who has it may win, lose or be killed, so it says nothing: numbers that are taken are passed over, and only the commit
decides. Written again are whole files, from their items: a multipart upload's parts belong to its key, and staged
memory is free once it was sent. The path is looked at again before, so that what a killed writer has left costs one
round, however much it is.

A number that is lost has been won by another writer; so of any number of writers one always gets on.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.distributed.checkpoint.filesystem import DEFAULT_SUFFIX
from torch.distributed.checkpoint.planner import WriteItem

from aiockpt.dcp.files import FilePlan
from aiockpt.errors import PreconditionFailed
from aiockpt.model import ObjectId

#: Rounds after which a store that calls every number taken is not believed any more. Two writers at the same pace are
#: in each other's way for half as many files in each round, so that 10 do for a thousand; of more writers, one's commit
#: ends the others' rounds.
MAX_ROUNDS = 32


class Rounds:
    """Names the files of one rank, until each has a name that nobody else has taken.

    Args:
        base: the checkpoint.
        prefix: what the names of the rank's objects begin with, below it.

    Attributes:
        next_number: the first number that no file of this rank has had.
    """

    def __init__(self, base: ObjectId, prefix: str) -> None:
        self.next_number = 0
        self._base = base
        self._prefix = prefix
        self._rounds = 0

    def named(self, files: Sequence[Sequence[WriteItem]], number: int) -> list[FilePlan]:
        """Files, given by their items, by the names that they have if ``number`` is the first one's."""
        return [FilePlan(f"{self._prefix}{n}{DEFAULT_SUFFIX}", items) for n, items in enumerate(files, number)]

    def first(self, files: Sequence[Sequence[WriteItem]], free_number: int) -> list[FilePlan]:
        """Files by the names to be tried first, ``free_number`` being the first one that is free."""
        self._rounds += 1
        self.next_number = free_number + len(files)
        return self.named(files, free_number)

    def again(self, taken: Sequence[FilePlan], free_number: int) -> list[FilePlan]:
        """The files of the last round whose names were taken, by others.

        ``free_number``: the first one that is free by now; listings of some stores lag behind.

        Raises:
            PreconditionFailed: that was the last round.
        """
        if self._rounds == MAX_ROUNDS:
            target = self._base / taken[0].path
            raise PreconditionFailed(
                f"{target.uri} is taken, as {MAX_ROUNDS - 1} names before it were that had been free when they were "
                "chosen: many writers save here at once, or the store refuses whatever must not replace anything",
                status=412, code="PreconditionFailed", bucket=target.bucket, key=target.key,
            )  # fmt: skip
        return self.first([file.items for file in taken], max(self.next_number, free_number))
