"""From a stream of memoryviews to parts: cut, checked by CRC32, and not copied, except for what is tiny.

Synchronous, for the thread that produces the bytes. One pass of CRC32 over each stretch serves the caller (who gets
that of every view), the part and the whole object, the latter two by combination.
"""

from __future__ import annotations

from collections.abc import Callable

from aiockpt.crc import BlockCrcs, crc32, crc32_combine
from aiockpt.engine.upload import OutgoingPart
from aiockpt.model import KiB, MiB
from aiockpt.plan.parts import PartSizes
from aiockpt.s3.bulk import Payload

#: Views below this are copied together: a copy of 64 KiB takes some 5 µs, about what a separate ``write`` to the
#: transport and its share of ``writev`` cost.
COPY_BELOW_BYTES = 64 * KiB

#: What tiny views are copied into; freed when the last part that holds some of it has been sent.
ARENA_BYTES = 1 * MiB


class PartAssembler:
    """Cuts what is written into parts and submits each as soon as it is full.

    Args:
        sizes: of the parts.
        submit: takes each part, in order.
        reserve: called before an arena of ``n`` bytes is made; the last part that holds some of an arena says so in its
            ``staged_bytes``, for them to be released.

    Attributes:
        nbytes: bytes written so far, up to the last part that was submitted.
        crc32: of them.
    """

    def __init__(
        self,
        sizes: PartSizes,
        submit: Callable[[OutgoingPart], None],
        reserve: Callable[[int], None],
    ) -> None:
        self._sizes = sizes
        self._submit = submit
        self._reserve = reserve
        self._arena = memoryview(bytearray())
        self._run_start = self._run_end = 0  # what of the arena is not yet among the part's views
        self._views: list[memoryview] = []
        self._owners: list[object] = []
        self._number = 0
        self.nbytes = 0
        self.crc32 = 0
        self._begin_part()

    def tell(self) -> int:
        """Bytes written so far."""
        return self.nbytes + self._part_nbytes

    def write(self, data: bytes | bytearray | memoryview, owner: object = None) -> None:
        """Append ``data``, whatever its size: copied if tiny, else by reference as with ``refer_to``."""
        if len(data) < COPY_BELOW_BYTES:
            self.copy_in(data)
        else:
            self.refer_to(memoryview(data), owner)

    def copy_in(self, *pieces: bytes | bytearray | memoryview) -> None:
        """Append copies of ``pieces``, which may be small or large."""
        for data in pieces:
            size = len(data)
            start = self._run_end
            end = start + size
            if size <= self._room and end <= len(self._arena):  # nearly always, for what is small
                self._arena[start:end] = data
                self._run_end = end
                self._part_nbytes += size
                self._room -= size
            else:
                self._copy_in_parts(memoryview(data))

    def _copy_in_parts(self, view: memoryview) -> None:
        """Append a copy of what reaches out of the part, or of the arena."""
        while view:
            if not self._room:
                self._end_part()
            if self._run_end == len(self._arena):
                self._new_arena()
            size = min(len(view), self._room, len(self._arena) - self._run_end)
            self.copy_in(view[:size])
            view = view[size:]

    def refer_to(
        self, view: memoryview, owner: object, *, staged_bytes: int = 0, blocks: BlockCrcs | None = None
    ) -> int:
        """Append ``view`` without copying it; returns its CRC32, and adds those of its blocks to ``blocks``.

        Its bytes must stay as they are, and ``owner`` (what they belong to) is kept alive, until the parts that hold
        them have been sent. ``staged_bytes``: what the caller has reserved for it, if it is a copy.
        """
        total = 0
        if staged_bytes:
            self._begin_copy()
        while len(view):
            if not self._room:
                self._end_part()
            self._end_run()
            piece, view = view[: self._room], view[self._room :]
            crc = crc32(piece) if blocks is None else blocks.add(piece)
            total = crc32_combine(total, crc, len(piece))
            self._add(piece, crc)
            self._owners.append(owner)
            self._part_nbytes += len(piece)
            self._part_copied += len(piece) if staged_bytes else 0
            self._room -= len(piece)
        self._staged += staged_bytes  # the last part that holds some of it releases it, as an arena
        return total

    def finish(self) -> None:
        """Submit what is left; an object of no bytes is one empty part."""
        self._staged += len(self._arena)
        if self._part_nbytes or self._number == 1:
            self._submit_part()
        self._views, self._owners, self._arena = [], [], memoryview(b"")  # they are the part's, and end with it

    def _begin_part(self) -> None:
        self._number += 1
        self._room = self._sizes.at(self._number)
        self._views, self._owners = [], []
        self._part_nbytes = self._part_crc = self._part_copied = self._staged = 0

    def _end_part(self) -> None:
        self._submit_part()
        self._begin_part()

    def _submit_part(self) -> None:
        self._end_run()
        self.crc32 = crc32_combine(self.crc32, self._part_crc, self._part_nbytes)
        self.nbytes += self._part_nbytes
        payload = Payload(self._views, self._part_nbytes, self._part_crc)
        self._part_nbytes = 0
        self._submit(OutgoingPart(self._number, payload, self._owners, self._staged))

    def _begin_copy(self) -> None:
        """End a part that has enough copies; what is referred to still fills it up."""
        if self._part_copied >= self._sizes.copied:
            self._end_part()

    def _new_arena(self) -> None:
        self._end_run()
        self._staged += len(self._arena)
        self._begin_copy()
        self._reserve(ARENA_BYTES)
        self._arena = memoryview(bytearray(ARENA_BYTES))
        self._run_start = self._run_end = 0

    def _end_run(self) -> None:
        """What was copied since the last view becomes one view."""
        if self._run_end > self._run_start:
            run = self._arena[self._run_start : self._run_end]
            self._add(run, crc32(run))
            self._part_copied += len(run)
            self._run_start = self._run_end

    def _add(self, view: memoryview, crc: int) -> None:
        self._views.append(view)
        self._part_crc = crc32_combine(self._part_crc, crc, len(view))
