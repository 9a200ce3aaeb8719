"""The recorder: what a save or load has done so far, for its progress and its report.

Counts without locks: each field is written by one thread (requests by the loop's, the rest by the one that called DCP),
and read by any.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aiockpt.observe.exchange import BULK_OPERATIONS, SLOW_DOWN, Exchange, clock, tell_finished, watching
from aiockpt.observe.report import Kind, Phase, Progress, Report


@dataclass(slots=True)
class PhaseTime:
    """When a phase was: its first begin, its last end, and the time spent in it, in seconds."""

    start_s: float
    end_s: float
    spent_s: float = 0.0


class Recorder:
    """Records one save or load of one rank; begins with the plan phase.

    Args:
        kind: which of the two.
        uri: of the checkpoint.
        rank: whose.
        now: the clock, in seconds; that of the exchanges.
        cpu: CPU seconds used so far, of whatever works for it: the difference is taken over each ``working`` block.

    Attributes:
        times: of the phases that have ended.
        error: the class of what made it fail; ``""``: nothing has.
    """

    def __init__(
        self,
        kind: Kind,
        uri: str,
        rank: int = 0,
        *,
        now: Callable[[], float] = clock,
        cpu: Callable[[], float] = time.process_time,
    ) -> None:
        self.kind = kind
        self.uri = uri
        self.rank = rank
        self.times: dict[Phase, PhaseTime] = {}
        self.error = ""
        self._now = now
        self._cpu = cpu
        self._started_s = now()
        self._transfer_s = 0.0
        self._first_byte_s = 0.0
        self._cpu_s = 0.0
        self._added_bytes = self._expected_bytes = 0
        self._queued_bytes = 0
        self._done: Callable[[], int] = lambda: 0
        self._operations: Counter[str] = Counter()
        self._received_bytes = self._sent_bytes = 0
        self._retries = self._hedges = self._throttles = 0
        self._slices = self._stretches = 0
        self._unproven_bytes = 0

    # ---- by whoever performs it

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count the requests that are begun for this block, and its CPU time."""
        before = self._cpu()
        try:
            with watching(self):
                yield
        finally:
            self._cpu_s += self._cpu() - before

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Count the time of this block for ``phase``.

        The transfer ends the plan; a transfer or commit that fails ends it all, and the witnesses are told.
        """
        start = self._now()
        if phase is Phase.TRANSFER and not self._transfer_s:
            self._transfer_s = start
            self._spent(Phase.PLAN, self._started_s, start)
        try:
            yield
        except BaseException as error:
            self.error = self.error or type(error).__name__
            raise
        finally:
            self._spent(phase, start, self._now())
            if self.error and phase in {Phase.TRANSFER, Phase.COMMIT}:
                tell_finished(self)

    def add(self, nbytes: int) -> None:
        """So many bytes were wanted, and have been moved already: metadata."""
        self._added_bytes += nbytes

    def expect(self, nbytes: int, done: Callable[[], int]) -> None:
        """So many bytes are wanted; ``done`` tells, to any thread, how many have been moved."""
        self._expected_bytes = nbytes
        self._done = done

    def queue(self, nbytes: int) -> None:
        """So many bytes are on their way, with what comes along to spare requests."""
        self._queued_bytes += nbytes

    def sliced(self, stretches: int) -> None:
        """A slice of a tensor is fetched as so many ranges."""
        self._slices += 1
        self._stretches += stretches

    def unproven(self, nbytes: int) -> None:
        """So many bytes have come that there was nothing to compare with."""
        self._unproven_bytes += nbytes

    def _spent(self, phase: Phase, start: float, end: float) -> None:
        spent = self.times.setdefault(phase, PhaseTime(start, end))
        spent.end_s = end
        spent.spent_s += end - start

    # ---- exchange.Observer

    def began(self, exchange: Exchange) -> None:
        """An exchange of this save or load begins."""

    def ended(self, exchange: Exchange) -> None:
        """It is over."""
        self._operations[exchange.operation] += 1
        self._retries += exchange.attempt > 1
        self._hedges += exchange.hedge
        self._throttles += exchange.status in SLOW_DOWN
        if exchange.operation not in BULK_OPERATIONS:
            return
        self._sent_bytes += exchange.sent_bytes
        self._received_bytes += exchange.received_bytes
        if exchange.first_byte_s and exchange.asked_s >= self._transfer_s > 0:
            self._first_byte_s = min(self._first_byte_s or exchange.first_byte_s, exchange.first_byte_s)

    # ---- for whoever looks

    def received_bytes(self) -> int:
        """Bytes of objects that have come so far."""
        return self._received_bytes

    def progress(self) -> Progress:
        """How far it is; from any thread, at any time."""
        now = self._now()
        done = self._added_bytes + self._done()
        total = max(self._added_bytes + max(self._expected_bytes, self._queued_bytes), done)
        transfer = self.times.get(Phase.TRANSFER)
        moving_s = (transfer.end_s if transfer is not None else now) - (self._transfer_s or now)
        rate = done / moving_s if moving_s > 0 else 0.0
        return Progress(
            done_bytes=done,
            total_bytes=total,
            requests=self._operations.total(),
            elapsed_s=now - self._started_s,
            rate=rate,
            remaining_s=(total - done) / rate if rate else None,
        )

    def finish(self) -> Report:
        """It has succeeded: tell the witnesses; returns the report."""
        tell_finished(self)
        return self.report()

    def report(self) -> Report:
        """What it has done so far."""
        return Report(
            kind=self.kind,
            uri=self.uri,
            rank=self.rank,
            elapsed_s=self._now() - self._started_s,
            phases={phase.value: spent.spent_s for phase, spent in self.times.items()},
            first_byte_s=self._first_byte_s - self._transfer_s if self._first_byte_s else None,
            cpu_s=self._cpu_s,
            wanted_bytes=self._added_bytes + self._expected_bytes,
            received_bytes=self._received_bytes,
            sent_bytes=self._sent_bytes,
            operations=dict(self._operations),
            retries=self._retries,
            hedges=self._hedges,
            throttles=self._throttles,
            slices=self._slices,
            stretches=self._stretches,
            unproven_bytes=self._unproven_bytes,
        )
