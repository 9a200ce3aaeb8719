"""The comparison of what has landed with its proof: noted piece by piece as it lands, decided at the end. No I/O."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from operator import itemgetter

from aiockpt.crc import crc32, crc32_combine
from aiockpt.dcp.proof import Proof
from aiockpt.model import ByteRange


class Check:
    """Takes the CRC32s of what has landed, piece by piece in any order, and compares.

    Args:
        proof: what to compare with; None: only the whole's CRC32 is asked for.
    """

    def __init__(self, proof: Proof | None) -> None:
        self._proof = proof
        self._bounds = proof.bounds if proof is not None else (0, sys.maxsize)
        self._pieces: dict[int, tuple[int, int]] = {}  # by end: start and CRC32; none reaches over a block's bounds

    def note(self, start: int, memory: memoryview) -> None:
        """These bytes are those from ``start`` on; nobody else notes them. From any thread."""
        end = start + len(memory)
        number = bisect_right(self._bounds, start)
        while start < end:
            stop = min(end, self._bounds[number])
            before = self._pieces.pop(start, None) if start > self._bounds[number - 1] else None
            number += 1
            first, crc = before or (start, 0)
            self._pieces[stop] = first, crc32(memory[: stop - start], crc)
            memory = memory[stop - start :]
            start = stop

    def note_rest(self, landed: Sequence[tuple[int, memoryview]]) -> None:
        """Note what has not been noted yet of all that has landed: where it begins, and its memory."""
        noted = deque(self._noted())
        for start, memory in sorted(landed, key=itemgetter(0)):
            at, end = start, start + len(memory)
            while at < end:
                while noted and noted[0][1] <= at:
                    noted.popleft()
                next_start, next_end = noted[0] if noted else (end, end)
                if next_start > at:
                    self.note(at, memory[at - start : min(end, next_start) - start])
                at = next_end

    def _noted(self) -> list[tuple[int, int]]:
        """Start and end of what has been noted, ascending, as few stretches as possible."""
        stretches: list[tuple[int, int]] = []
        first = last = 0
        for start, end, _ in self._ascending():
            if start != last:
                stretches.append((first, last))
                first = start
            last = end
        return [*stretches, (first, last)]

    def crc32(self) -> int:
        """Of all that was noted, end to end."""
        total = 0
        for start, end, crc in self._ascending():
            total = crc32_combine(total, crc, end - start)
        return total

    def damaged(self) -> ByteRange | None:
        """The first block that was noted as a whole and does not match."""
        if self._proof is None:
            return None
        number, filled, running = -1, 0, 0
        for start, end, crc in self._ascending():
            if start >= self._bounds[number + 1]:
                number = bisect_right(self._bounds, start) - 1
                filled, running = self._bounds[number], self._proof.before(number)
            if start != filled:  # a gap: nothing can be said of this block
                continue
            running = crc32_combine(running, crc, end - start)
            filled = end
            if filled == self._bounds[number + 1] and running != self._proof.running[number]:
                return self._proof.block(number)
        return None

    def _ascending(self) -> list[tuple[int, int, int]]:
        """Start, end and CRC32 of each piece."""
        return sorted((start, end, crc) for end, (start, crc) in self._pieces.items())
