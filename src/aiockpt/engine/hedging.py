"""Hedged range requests: one that falls far behind its siblings is raced by a second one.

``plan.hedge`` decides which; this module watches the clock, starts, and cuts the loser. Both requests write the same
bytes of the same object, proven by the ETag, into the same memory; the hedge those that are missing when it begins. So
whichever comes to its end first, all bytes are there, and what the other one wrote meanwhile was the same. The loser is
cut, and its end awaited, before anybody is told: from then on nobody writes to that memory.

A failure of one is not told while the other goes on: a hedge never makes a load fail that would have succeeded.

Reads only. A part that is sent twice is stored twice, and may be stored after it was cut: where ETags are not those of
the bytes (SSE-KMS), a loser that the service finishes late changes the ETag of a part that has been reported already,
and the upload cannot be completed any more. Nor could a part's hedge go on where the first one stands: it would double
the bytes, and what is slow when many writers send is mostly the way out, which they share.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import copy_context
from typing import Protocol

import anyio

from aiockpt.errors import AiockptError
from aiockpt.model import ObjectId
from aiockpt.plan.hedge import Flight, HedgeController
from aiockpt.s3.bulk import Bulk, RangeTransfer

logger = logging.getLogger("aiockpt")

#: How often requests under way are looked at: half of ``LEAST_AGE_S``, so that none is noticed much later.
CHECK_S = 0.1


class CountsHedges(Protocol):
    """Whatever keeps count of hedges; see ``DownloadStats``."""

    hedges: int
    hedges_won: int
    hedged_bytes: int


class Hedging:
    """The range requests of an engine, watched while any is under way. Per-loop.

    Args:
        share: hedges for each request, at most; 0: none at all.
        on_failure: told what a request failed with that did not matter, since the other one went on.
    """

    def __init__(self, share: float, on_failure: Callable[[ObjectId, AiockptError], None]) -> None:
        self._control = HedgeController(share)
        self._on_failure = on_failure
        self._races: dict[Flight, Race] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def get(self, bulk: Bulk, source: ObjectId, transfer: RangeTransfer, stats: CountsHedges) -> None:
        """One attempt to land the rest of a range, by one request or two; see ``Bulk.get``.

        After it has ended, however, none of them writes to the transfer's memory. Nothing is asked for if nothing is
        missing: an attempt may break when all bytes have come, but not yet the end of their framing.
        """
        if not transfer.landing.remaining:
            return
        loop = asyncio.get_running_loop()
        race = Race(bulk, source, transfer, stats, self._on_failure)
        flight = self._control.begin(len(transfer.rest), race.landed, loop.time())
        transfer.on_answer = lambda: self._control.on_answer(flight, loop.time())
        self._races[flight] = race
        self._watch(loop)
        complete = False
        try:
            await race.run()
            complete = True
        finally:
            del self._races[flight]
            self._control.on_end(flight, loop.time(), complete=complete)

    def on_throttle(self) -> None:
        """Note that the service asked to slow down: no hedges for a while."""
        self._control.on_throttle(asyncio.get_running_loop().time())

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Keep one timer while anything is under way."""
        if self._timer is None:
            self._timer = loop.call_at(loop.time() + CHECK_S, self._check, loop, loop.time() + CHECK_S)

    def _check(self, loop: asyncio.AbstractEventLoop, due_at: float) -> None:
        self._timer = None
        if not self._races:
            return
        self._watch(loop)
        now = loop.time()
        if now - due_at < CHECK_S:  # else the thread was held up, and what has arrived meanwhile is still unread
            for flight in self._control.due(now):
                self._races[flight].hedge()


class Race:
    """One attempt at a range: the original request, and its hedge if it gets one."""

    def __init__(
        self,
        bulk: Bulk,
        source: ObjectId,
        transfer: RangeTransfer,
        stats: CountsHedges,
        on_failure: Callable[[ObjectId, AiockptError], None],
    ) -> None:
        self._bulk = bulk
        self._source = source
        self._transfer = transfer
        self._stats = stats
        self._on_failure = on_failure
        self._landed_before = transfer.landing.landed
        self._context = copy_context()  # of the load, for the hedge, which the timer begins
        self._original = anyio.CancelScope()
        self._second: RangeTransfer | None = None
        self._hedge: asyncio.Task[None] | None = None
        self._hedge_won = False

    def landed(self) -> int:
        """Bytes that the original has brought in this attempt."""
        return self._transfer.landing.landed - self._landed_before

    async def run(self) -> None:
        """Land what is missing, by whichever comes first; raises the original's error when both have failed."""
        try:
            with self._original:
                await self._bulk.get(self._source, self._transfer)
        except AiockptError as error:
            if not await self._hedge_makes_it():
                raise
            self._on_failure(self._source, error)
        finally:
            await self._cut_hedge()

    def hedge(self) -> None:
        """Begin the hedge."""
        logger.debug("%s: hedged after %d of %d bytes", self._source, self.landed(), len(self._transfer.span))
        self._stats.hedges += 1
        self._second = self._transfer.hedge()
        self._hedge = asyncio.get_running_loop().create_task(self._run_hedge(self._second), context=self._context)

    async def _run_hedge(self, second: RangeTransfer) -> None:
        landed_before = second.landing.landed
        try:
            await self._bulk.get(self._source, second)
        except AiockptError as error:
            self._on_failure(self._source, error)
        else:
            self._hedge_won = True
            self._stats.hedges_won += 1
            self._original.cancel()
        finally:
            self._stats.hedged_bytes += second.landing.landed - landed_before

    async def _hedge_makes_it(self) -> bool:
        """Whether there is a hedge, and it brings what is missing."""
        if self._hedge is None:
            return False
        await asyncio.wait([self._hedge])
        return self._hedge_won

    async def _cut_hedge(self) -> None:
        """End the hedge, if there is one; the next attempt, if there must be one, goes on from the further byte.

        Shielded, as a cancellation may be what has brought us here.
        """
        if self._hedge is None or self._second is None:
            return
        self._hedge.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait([self._hedge])
        if self._second.landing.landed > self._transfer.landing.landed:
            self._transfer.landing = self._second.landing
        if not self._hedge.cancelled():
            self._hedge.result()  # whatever is no failure of the request is a bug, and told
