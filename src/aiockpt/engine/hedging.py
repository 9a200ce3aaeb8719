"""Hedged requests: a range request or a part that falls far behind its siblings is raced by a second one.

``plan.hedge`` decides which; this module watches the clock, starts, and cuts the loser. Both requests move the same
bytes: a read those that are missing when its hedge begins, from the same object (the ETag proves it) into the same
memory; a part all of them, under the same number. So whichever comes to its end first, it is done. The loser is cut,
and its end awaited, before anybody is told: from then on nobody writes to that memory, or reads from it.

A failure of one is not told while the other goes on: a hedge never makes a load or save fail that would have succeeded.

A part's loser may have been sent as a whole when it is cut, and the service may then store it later than the winner:
the same bytes again, and where ETags are those of bytes nothing has changed; where they are not (SSE-KMS),
``MultipartUpload.complete`` looks. Once the upload is completed or aborted, the service refuses it. Nothing of that
holds for an object that is one PUT. What is left of one may be stored at any time: over what another writer wrote
meanwhile, or in the place of what was deleted, which no condition prevents. So those are not hedged.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, Self, TypeVar

import anyio

from aiockpt.engine.clock import Clock
from aiockpt.errors import AiockptError
from aiockpt.model import ObjectId
from aiockpt.plan.hedge import Flight, HedgeController

logger = logging.getLogger("aiockpt")

#: How often requests under way are looked at: half of ``LEAST_AGE_S``, so that none is noticed much later.
CHECK_S = 0.1


@dataclass(slots=True)
class HedgeStats:
    """What has been done about slow requests.

    Attributes:
        hedges: second requests beside slow ones.
        hedges_won: those that were done first.
        hedged_bytes: bytes that hedges moved, those of the others included.
    """

    hedges: int = 0
    hedges_won: int = 0
    hedged_bytes: int = 0


class Transfer(Protocol):
    """What a request moves. See ``RangeTransfer``, ``PartTransfer``."""

    on_answer: Callable[[], None] | None

    @property
    def missing_bytes(self) -> int:
        """Bytes that a request that begins now has to move."""

    @property
    def moved_bytes(self) -> int:
        """Bytes that have been moved."""

    def hedge(self) -> Self:
        """Another transfer of what is to be moved now."""

    def learn(self, hedge: Self) -> None:
        """Take over what a hedge has brought about; both have ended."""


T = TypeVar("T", bound=Transfer)

#: Does a transfer by one request, as ``Bulk`` does.
Perform = Callable[[T], Awaitable[None]]

#: Is told what a request failed with that did not matter, since the other one went on.
OnFailure = Callable[[ObjectId, AiockptError], None]


class Hedging:
    """The requests of one direction, watched while any is under way. Per-loop.

    Args:
        control: decides.
        clock: what ``control`` is told the time by.
        on_failure: see ``OnFailure``.
    """

    def __init__(self, control: HedgeController, clock: Clock, on_failure: OnFailure) -> None:
        self._control = control
        self._clock = clock
        self._on_failure = on_failure
        self._races: dict[Flight, Race[Any]] = {}
        self._watching = False

    async def run(self, perform: Perform[T], target: ObjectId, transfer: T, stats: HedgeStats) -> None:
        """One attempt at a transfer, by one request or two; see ``Bulk``.

        After it has ended, however, none of them touches the transfer's memory.
        """
        race = Race(perform, target, transfer, stats, self._on_failure)
        flight = self._control.begin(transfer.missing_bytes, race.moved_bytes, self._clock.now())
        transfer.on_answer = lambda: self._control.on_answer(flight, self._clock.now())
        self._races[flight] = race
        self._watch()
        complete = False
        try:
            await race.run()
            complete = True
        finally:
            transfer.on_answer = None  # it leads back to the transfer, and so to the caller's memory
            del self._races[flight]
            self._control.on_end(flight, self._clock.now(), complete=complete)

    def on_throttle(self) -> None:
        """Note that the service asked to slow down: no hedges for a while."""
        self._control.on_throttle(self._clock.now())

    def _watch(self) -> None:
        """Keep one timer while anything is under way."""
        if not self._watching:
            self._watching = True
            self._clock.call_later(CHECK_S, partial(self._check, self._clock.now() + CHECK_S))

    def _check(self, due_at: float) -> None:
        self._watching = False
        if not self._races:
            return
        self._watch()
        now = self._clock.now()
        if now - due_at < CHECK_S:  # else the thread was held up, and what has arrived meanwhile is still unread
            for flight in self._control.due(now):
                self._races[flight].hedge()


class Race(Generic[T]):
    """One attempt at a transfer: the original request, and its hedge if it gets one."""

    def __init__(
        self, perform: Perform[T], target: ObjectId, transfer: T, stats: HedgeStats, on_failure: OnFailure
    ) -> None:
        self._perform = perform
        self._target = target
        self._transfer = transfer
        self._stats = stats
        self._on_failure = on_failure
        self._moved_before = transfer.moved_bytes
        self._context = copy_context()  # of the load or save, for the hedge, which the timer begins
        self._original = anyio.CancelScope()
        self._second: T | None = None
        self._hedge: asyncio.Task[None] | None = None
        self._hedge_won = False

    def moved_bytes(self) -> int:
        """Bytes that the original has moved in this attempt."""
        return self._transfer.moved_bytes - self._moved_before

    async def run(self) -> None:
        """Move what is missing, by whichever is done first; raises the original's error when both have failed."""
        try:
            with self._original:
                await self._perform(self._transfer)
        except AiockptError as error:
            if not await self._hedge_makes_it():
                raise
            self._on_failure(self._target, error)
        finally:
            await self._cut_hedge()

    def hedge(self) -> None:
        """Begin the hedge."""
        logger.debug("%s: hedged after %d bytes", self._target, self.moved_bytes())
        self._stats.hedges += 1
        self._second = self._transfer.hedge()
        self._hedge = asyncio.get_running_loop().create_task(self._run_hedge(self._second), context=self._context)

    async def _run_hedge(self, second: T) -> None:
        moved_before = second.moved_bytes
        try:
            await self._perform(second)
        except AiockptError as error:
            self._on_failure(self._target, error)
        else:
            self._hedge_won = True
            self._stats.hedges_won += 1
            self._original.cancel()
        finally:
            self._stats.hedged_bytes += second.moved_bytes - moved_before

    async def _hedge_makes_it(self) -> bool:
        """Whether there is a hedge, and it moves what is missing."""
        if self._hedge is None:
            return False
        await asyncio.wait([self._hedge])
        return self._hedge_won

    async def _cut_hedge(self) -> None:
        """End the hedge, if there is one.

        Shielded, as a cancellation may be what has brought us here.
        """
        if self._hedge is None or self._second is None:
            return
        self._hedge.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait([self._hedge])
        self._transfer.learn(self._second)
        if not self._hedge.cancelled():
            self._hedge.result()  # whatever is no failure of the request is a bug, and told
