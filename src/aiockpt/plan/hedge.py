"""Which requests under way are worth a second one: a hedge.

One job: compare a request with its siblings, the requests of the same engine and direction that ran beside it and have
ended. A request is slow if it takes far longer than theirs of its size took and a new one would be done much sooner; a
read also if its first byte is far later than theirs were. It has no clock, starts nothing and cancels nothing.

The directions differ in two things (``slow_read``, ``slow_part``). A read is answered before its bytes come, and a new
one brings only what is missing. A part is answered when all its bytes are there, and a new one sends all of them again:
so when all of it is sent, nothing but the wait for the answer tells that it is slow.

Two things must not be taken for a slow request. A service that is slow altogether: then many requests are slow at once,
and few end, so for each slow one there must be several that ended beside it (``SIBLINGS_PER_SUSPECT``). And a service
that asks to slow down: it gets no second requests, until ``QUIET_S`` after it last asked.

Hedges are paid for with tokens that requests bring: over the life of an engine they are at most ``share`` of them, and
the few that may be saved up. That it need not be many is the finding of "The Tail at Scale" (Dean and Barroso, CACM
2013): 2 % more requests cut the 99.9th percentile of a read over a hundred servers from 1,800 ms to 74 ms.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import NamedTuple

#: No request is slow before that: shorter than most requests of some MiB, longer than the pauses that a busy
#: interpreter makes, and not worth a request to anybody.
LEAST_AGE_S = 0.2

#: How many times the usual first byte is too late. S3's comes after 10-200 ms, that of few requests after seconds. AWS
#: advises to repeat these early, on a new connection, with the name looked up anew ("Timeouts and retries for
#: latency-sensitive applications", Best Practices Design Patterns: Optimizing Amazon S3 Performance).
FIRST_BYTE_FACTOR = 5.0

#: How many times the usual duration is too long. Connections to S3 differ by a factor of two without anything being
#: wrong with them.
DURATION_FACTOR = 3.0

#: How many times sooner a hedge should end: below that it is not worth its request.
LEAST_GAIN = 2.0

#: Siblings for each suspect: one in five at most is an outlier, more are a slow service.
SIBLINGS_PER_SUSPECT = 4

#: A request that would be slow if it were so many times as old is a suspect already. Requests of a service that turns
#: slow become slow one after the other, as they began; the first of them is no outlier.
SUSPECT_FACTOR = 2.0

#: Durations are compared with those of requests of at least this share of the size. Those of smaller ones, which are
#: mostly first byte, say nothing about a larger one.
COMPARABLE_SHARE = 0.25

#: Ended requests that are remembered: as many as may run at once on a usual link, so all of them may be siblings.
REMEMBERED = 32

#: Tokens to begin with, so that a load or save of 40 requests, too, can hedge one; and how many can be saved: a fifth
#: of 25 connections may turn slow at one time, the rest of what good times bring is forgotten.
FIRST_TOKENS = 1.0
MOST_TOKENS = 5.0

#: Seconds without hedges after the service asked to slow down: its retries come after pauses of up to 3 s by then
#: (0.05 s doubled six times), so that a storm is not over because nobody asked for a moment.
QUIET_S = 5.0


@dataclass(slots=True, eq=False)
class Flight:
    """A request under way.

    Attributes:
        nbytes: to be moved.
        moved: tells how many of them have been: landed here, or acknowledged by the peer.
        began_at, answered_at: when it was sent, and when its answer's head came (inf: not yet).
        hedged: whether it has a hedge; one is enough.
        seen_bytes, seen_at: how many had been moved when that was last found to have changed, and when that was.
    """

    nbytes: int
    moved: Callable[[], int]
    began_at: float
    answered_at: float = math.inf
    hedged: bool = False
    seen_bytes: int = 0
    seen_at: float = -math.inf

    def look(self, now: float) -> Look:
        """How it stands."""
        moved_bytes = self.moved()
        if moved_bytes != self.seen_bytes:
            self.seen_bytes, self.seen_at = moved_bytes, now
        idle_s = now - max(self.seen_at, self.began_at)
        return Look(self.nbytes, moved_bytes, now - self.began_at, idle_s, self.answered_at != math.inf)


class Look(NamedTuple):
    """How a request under way stands at some moment.

    Attributes:
        nbytes, moved_bytes: to be moved, and of these moved.
        age_s: since it was sent.
        idle_s: since a byte was last seen to move.
        answered: whether its answer's head has come.
    """

    nbytes: int
    moved_bytes: int
    age_s: float
    idle_s: float
    answered: bool

    @property
    def missing_bytes(self) -> int:
        """Those that have not been moved."""
        return self.nbytes - self.moved_bytes

    @property
    def left_s(self) -> float:
        """How long it will still take: at its rate, and at least as long as it has been idle.

        What has stood still for a while will stand still for about as long again; a shorter while than
        ``LEAST_AGE_S`` says nothing.
        """
        idle_s = self.idle_s if self.idle_s >= LEAST_AGE_S else 0.0
        if not self.missing_bytes:
            return idle_s
        return max(idle_s, self.age_s * self.missing_bytes / self.moved_bytes) if self.moved_bytes else math.inf

    def older(self, factor: float) -> Look:
        """The same, so many times as old."""
        return self._replace(age_s=factor * self.age_s, idle_s=factor * self.idle_s)


class Sibling(NamedTuple):
    """A request that has ended well."""

    nbytes: int
    began_at: float
    ended_at: float
    first_byte_s: float


#: Says beside which ones of the ended requests (there is one at least) one under way is slow; none, if it is not.
Judge = Callable[[Look, Sequence[Sibling]], Sequence[Sibling]]


def slow_read(look: Look, ended: Sequence[Sibling]) -> Sequence[Sibling]:
    """The ended range requests beside which one is slow. See ``Judge``."""
    first_byte_s = median_low(each.first_byte_s for each in ended)
    if not look.answered and look.age_s > FIRST_BYTE_FACTOR * first_byte_s:
        return ended
    alike = _comparable(look, ended)
    if not alike or not look.missing_bytes:  # but for the end of its framing: there is nothing to ask for
        return ()
    usual_s = _usual_s(look, alike)
    return alike if _drags(look, usual_s, first_byte_s + usual_s * look.missing_bytes / look.nbytes) else ()


def slow_part(look: Look, ended: Sequence[Sibling]) -> Sequence[Sibling]:
    """The ended parts beside which one is slow. See ``Judge``."""
    alike = _comparable(look, ended)
    if not alike:
        return ()
    usual_s = _usual_s(look, alike)
    return alike if _drags(look, usual_s, usual_s) else ()


class HedgeController:
    """Watches the requests of one direction, and says which to hedge.

    Args:
        share: hedges for each request, at most; 0: none at all.
        judge: says what is slow.
    """

    def __init__(self, share: float, judge: Judge) -> None:
        self._share = share
        self._judge = judge
        self._tokens = FIRST_TOKENS if share else 0.0
        self._flights: set[Flight] = set()
        self._ended: deque[Sibling] = deque(maxlen=REMEMBERED)
        self._quiet_until = -math.inf

    def begin(self, nbytes: int, moved: Callable[[], int], now: float) -> Flight:
        """Note that a request for ``nbytes`` is sent; ``moved`` tells how many of them have been."""
        self._tokens = min(MOST_TOKENS, self._tokens + self._share)
        flight = Flight(nbytes, moved, now)
        self._flights.add(flight)
        return flight

    def on_answer(self, flight: Flight, now: float) -> None:
        """Note that the head of its answer has come."""
        flight.answered_at = now

    def on_end(self, flight: Flight, now: float, *, complete: bool) -> None:
        """Note that a request has ended; one that moved all its bytes is a sibling of others from now on."""
        self._flights.discard(flight)
        if complete:
            answered_at = min(flight.answered_at, now)
            self._ended.append(Sibling(flight.nbytes, flight.began_at, now, answered_at - flight.began_at))

    def on_throttle(self, now: float) -> None:
        """Note that the service asked to slow down."""
        self._quiet_until = now + QUIET_S

    def due(self, now: float) -> list[Flight]:
        """The requests to hedge now, the oldest first; each is named once, and paid for."""
        looks = {flight: flight.look(now) for flight in self._flights}
        if self._tokens < 1 or now < self._quiet_until:
            return []
        slow = {flight: others for flight, look in looks.items() if (others := self._faster_than(look))}
        if not slow:
            return []
        suspects = sum(bool(self._faster_than(look.older(SUSPECT_FACTOR))) for look in looks.values())
        enough = suspects * SIBLINGS_PER_SUSPECT
        due = [flight for flight in slow if not flight.hedged and _beside(flight, slow[flight]) >= enough]
        due = sorted(due, key=lambda flight: flight.began_at)[: int(self._tokens)]
        for flight in due:
            flight.hedged = True
        self._tokens -= len(due)
        return due

    def _faster_than(self, look: Look) -> Sequence[Sibling]:
        """The ended requests beside which one that stands so is slow; none, if it is not."""
        return self._judge(look, self._ended) if self._ended and look.age_s >= LEAST_AGE_S else ()


def _beside(flight: Flight, ended: Sequence[Sibling]) -> int:
    """How many of these ran beside a request: earlier ones say nothing about how the service is now."""
    return sum(each.ended_at >= flight.began_at for each in ended)


def _comparable(look: Look, ended: Sequence[Sibling]) -> Sequence[Sibling]:
    return [each for each in ended if each.nbytes >= look.nbytes * COMPARABLE_SHARE]


def _usual_s(look: Look, alike: Sequence[Sibling]) -> float:
    """How long these took, had they been as large."""
    return median_low((each.ended_at - each.began_at) * max(1.0, look.nbytes / max(1, each.nbytes)) for each in alike)


def _drags(look: Look, usual_s: float, anew_s: float) -> bool:
    """Whether a request takes far longer than others took, and a new one would end much sooner."""
    return look.age_s > DURATION_FACTOR * usual_s and look.left_s > LEAST_GAIN * anew_s
