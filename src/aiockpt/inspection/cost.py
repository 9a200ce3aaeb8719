"""How long a load takes on a given link, and what its requests cost. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from aiockpt.inspection.forecast import Forecast

#: US dollars for 1,000 GET requests: S3 Standard in US East (N. Virginia), "GET, SELECT, and all other requests" on
#: https://aws.amazon.com/s3/pricing/ (HEAD is among the others). Other regions and classes have other prices.
PRICE_PER_1000_GETS_USD = 0.0004


@dataclass(frozen=True, slots=True)
class Link:
    """What lies between a rank and the store.

    Attributes:
        bits_per_s: of the rank's link.
        latency_s: from a request to the first byte of its answer.
        connections: how many requests are under way at once.
    """

    bits_per_s: float
    latency_s: float
    connections: int


def load_s(forecast: Forecast, metadata_nbytes: int, link: Link) -> float:
    """Seconds for one rank: metadata first, then the data.

    The data take as long as the link needs for their bytes, or the connections for their latencies, whichever is
    longer: while one request waits for its first byte, others use the link. It is a bound from below: ranks that share
    a link, the store's own limits, and the work on what arrives come on top.
    """
    metadata_s = link.latency_s + metadata_nbytes * 8 / link.bits_per_s
    rounds = math.ceil((forecast.gets + forecast.heads) / link.connections)
    if not rounds:
        return metadata_s
    bytes_s = link.latency_s + forecast.fetched_bytes * 8 / link.bits_per_s
    return metadata_s + max(bytes_s, rounds * link.latency_s)


def requests_usd(requests: int, per_1000_usd: float) -> float:
    """US dollars for GET and HEAD requests."""
    return requests * per_1000_usd / 1000
