"""Which requests under way are worth a second one: a hedge.

One job: compare a request with its siblings, the requests of the same engine that ran beside it and have ended. A
request is slow if its first byte is far later than theirs were, or if it takes far longer than theirs of its size took
and a new one would bring what is missing much sooner. It has no clock, starts nothing and cancels nothing.

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

#: Tokens to begin with, so that a load of 40 requests, too, can hedge one; and how many can be saved: a fifth of 25
#: connections may turn slow at one time, the rest of what good times bring is forgotten.
FIRST_TOKENS = 1.0
MOST_TOKENS = 5.0

#: Seconds without hedges after the service asked to slow down: its retries come after pauses of up to 3 s by then
#: (0.05 s doubled six times), so that a storm is not over because nobody asked for a moment.
QUIET_S = 5.0


@dataclass(slots=True, eq=False)
class Flight:
    """A request under way.

    Attributes:
        nbytes: asked for.
        landed: tells how many of them have come.
        began_at, answered_at: when it was sent, and when its answer's head came (inf: not yet).
        hedged: whether it has a hedge; one is enough.
    """

    nbytes: int
    landed: Callable[[], int]
    began_at: float
    answered_at: float = math.inf
    hedged: bool = False


class _Sibling(NamedTuple):
    """A request that has ended well."""

    nbytes: int
    began_at: float
    ended_at: float
    first_byte_s: float


class HedgeController:
    """Watches requests, and says which to hedge.

    Args:
        share: hedges for each request, at most; 0: none at all.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._tokens = FIRST_TOKENS if share else 0.0
        self._flights: set[Flight] = set()
        self._ended: deque[_Sibling] = deque(maxlen=REMEMBERED)
        self._quiet_until = -math.inf

    def begin(self, nbytes: int, landed: Callable[[], int], now: float) -> Flight:
        """Note that a request for ``nbytes`` is sent; ``landed`` tells how many of them have come."""
        self._tokens = min(MOST_TOKENS, self._tokens + self._share)
        flight = Flight(nbytes, landed, now)
        self._flights.add(flight)
        return flight

    def on_answer(self, flight: Flight, now: float) -> None:
        """Note that the head of its answer has come."""
        flight.answered_at = now

    def on_end(self, flight: Flight, now: float, *, complete: bool) -> None:
        """Note that a request has ended; one that brought all its bytes is a sibling of others from now on."""
        self._flights.discard(flight)
        if complete:
            answered_at = min(flight.answered_at, now)
            self._ended.append(_Sibling(flight.nbytes, flight.began_at, now, answered_at - flight.began_at))

    def on_throttle(self, now: float) -> None:
        """Note that the service asked to slow down."""
        self._quiet_until = now + QUIET_S

    def due(self, now: float) -> list[Flight]:
        """The requests to hedge now, the oldest first; each is named once, and paid for."""
        if self._tokens < 1 or now < self._quiet_until:
            return []
        slow = {
            flight: others for flight in self._flights if (others := self._faster_than(flight, now - flight.began_at))
        }
        if not slow:
            return []
        suspects = sum(bool(self._faster_than(each, SUSPECT_FACTOR * (now - each.began_at))) for each in self._flights)
        enough = suspects * SIBLINGS_PER_SUSPECT
        due = [flight for flight in slow if not flight.hedged and _beside(flight, slow[flight]) >= enough]
        due = sorted(due, key=lambda flight: flight.began_at)[: int(self._tokens)]
        for flight in due:
            flight.hedged = True
        self._tokens -= len(due)
        return due

    def _faster_than(self, flight: Flight, age_s: float) -> Sequence[_Sibling]:
        """The ended requests beside which a request of that age is slow; none, if it is not."""
        if age_s < LEAST_AGE_S or not self._ended:
            return ()
        first_byte_s = median_low(each.first_byte_s for each in self._ended)
        if flight.answered_at == math.inf and age_s > FIRST_BYTE_FACTOR * first_byte_s:
            return self._ended
        alike = [each for each in self._ended if each.nbytes >= flight.nbytes * COMPARABLE_SHARE]
        return alike if alike and _drags(flight, age_s, first_byte_s, alike) else ()


def _beside(flight: Flight, ended: Sequence[_Sibling]) -> int:
    """How many of these ran beside a request: earlier ones say nothing about how the service is now."""
    return sum(each.ended_at >= flight.began_at for each in ended)


def _drags(flight: Flight, age_s: float, first_byte_s: float, alike: Sequence[_Sibling]) -> bool:
    """Whether a request takes far longer than others took, and a new one would end much sooner."""
    usual_s = median_low((each.ended_at - each.began_at) * max(1.0, flight.nbytes / each.nbytes) for each in alike)
    if age_s <= DURATION_FACTOR * usual_s:
        return False
    landed = flight.landed()
    missing = flight.nbytes - landed
    at_its_rate_s = age_s * missing / landed if landed else math.inf
    return at_its_rate_s > LEAST_GAIN * (first_byte_s + usual_s * missing / flight.nbytes)
