"""How many requests at once the service takes for keys of one prefix, once it has asked to slow down.

S3 limits requests by prefix: at least 3,500 PUT/COPY/POST/DELETE and 5,500 GET/HEAD a second for each partitioned one,
and while it splits a busy one further it answers 503 ("Best practices design patterns: optimizing Amazon S3
performance", Amazon S3 User Guide). So a 503 says something about the keys beside the one that was asked for, and
nothing about others. How S3 has partitioned a bucket cannot be seen from outside; here a prefix is a bucket and a key
up to its last slash. Where S3's is wider, each of ours in it finds out by its own 503s.

One job: a limit for each prefix that was throttled lately, halved by a 503 and growing with time until it is none
again. What was not throttled has no limit and is not remembered, so however long an engine lives, there is nothing to
clean up but what runs and what was throttled within the last seconds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from aiockpt.model import ObjectId

#: Throttled answers within that time after a limit was halved are about requests from before: S3's answer takes up to
#: 200 ms.
ROUND_TRIP_S = 0.2

#: Time in which a limit doubles. A 503 now and then is usual; it costs half of a prefix's requests for one second. In
#: a storm the limit is halved five times in that time.
DOUBLING_S = 1.0


def prefix_of(target: ObjectId) -> str:
    """The bucket and the key up to its last slash."""
    return f"{target.bucket}/{target.key.rpartition('/')[0]}"


@dataclass(frozen=True, slots=True)
class _Throttled:
    """When a prefix was last throttled, and the limit that it was given."""

    at: float
    limit: int


class PrefixLimits:
    """What runs under each prefix, and what may, in one direction.

    Args:
        largest: most requests that run at once in all: a limit that has grown to it is none.
        now: the time in seconds, of any monotonic clock.
    """

    def __init__(self, largest: int, now: Callable[[], float]) -> None:
        self._largest = largest
        self._now = now
        self._running: Counter[str] = Counter()
        self._throttled: dict[str, _Throttled] = {}  # the latest last

    def limit(self, prefix: str) -> float:
        """How many requests may run at once under a prefix; inf: as many as anybody likes."""
        throttled = self._throttled.get(prefix)
        if throttled is None:
            return math.inf
        grown = throttled.limit * 2 ** min((self._now() - throttled.at) / DOUBLING_S, 64.0)
        return int(grown) if grown < self._largest else math.inf

    def admits(self, prefix: str, waiting: int = 0) -> bool:
        """Whether another request may begin, if ``waiting`` others come first."""
        return self._running[prefix] + waiting < self.limit(prefix)

    def begin(self, prefix: str) -> None:
        """Note that a request begins."""
        self._running[prefix] += 1

    def end(self, prefix: str) -> None:
        """Note that a request has ended, or waits for its next try."""
        self._running[prefix] -= 1
        if not self._running[prefix]:
            del self._running[prefix]

    def on_throttle(self, prefix: str) -> None:
        """Note a throttled answer: halves what runs, once for all such answers of one round trip."""
        now = self._now()
        last = self._throttled.get(prefix)
        if last is not None and now - last.at < ROUND_TRIP_S:
            return
        ran = min(self.limit(prefix), max(1, self._running[prefix]))
        self._throttled.pop(prefix, None)
        self._throttled[prefix] = _Throttled(now, max(1, int(ran) // 2))
        self._forget()

    def _forget(self) -> None:
        """Drop what has grown out of its limit, from the oldest on."""
        while (oldest := next(iter(self._throttled))) and self.limit(oldest) == math.inf:
            del self._throttled[oldest]
