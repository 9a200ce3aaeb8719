"""How large the requests of one load or save should be."""

from __future__ import annotations

from aiockpt.model import KiB

#: Requests for each connection: with one, the slowest connection decides when the last byte is there; with
#: four, a connection that is a quarter slower costs no more than one request's time. More would only add
#: their latencies.
REQUESTS_PER_CONNECTION = 4

#: Where requests should be few, since each costs the thread that moves the bytes 0.5 ms of Python, they are as large as
#: for so many connections.
FEW_CONNECTIONS = 4

#: A range request is at most so many times as large as preferred; where they should be few, since it needs no memory of
#: its own, so many times.
MOST_TIMES = 2
MOST_TIMES_WHERE_FEW = 4

#: Request sizes are multiples of this; it is small against any of them.
GRANULE_BYTES = 64 * KiB


def request_bytes(total_bytes: int, connections: int, *, smallest: int, largest: int) -> int:
    """Choose the size at which what is larger is split, for ``total_bytes`` over ``connections``.

    Args:
        total_bytes: what the load or save moves in all.
        connections: how many requests run at once, at least 1.
        smallest: below this a request's latency and cost outweigh what the split brings.
        largest: above this a broken request costs too much; not below ``smallest``.

    Returns:
        Bytes, a multiple of 64 KiB except where a bound that is none decides.
    """
    even = -(-total_bytes // (connections * REQUESTS_PER_CONNECTION))
    return min(largest, max(smallest, -(-even // GRANULE_BYTES) * GRANULE_BYTES))


def request_bytes_around(total_bytes: int, connections: int, part_size: int, *, few: bool = False) -> int:
    """Likewise, around the size of parts that is preferred: from half of it to twice as much.

    ``few``: requests should be few: up to four times as much, whatever the connections (``FEW_CONNECTIONS``).
    """
    connections, times = (min(connections, FEW_CONNECTIONS), MOST_TIMES_WHERE_FEW) if few else (connections, MOST_TIMES)
    return request_bytes(total_bytes, connections, smallest=part_size // 2, largest=part_size * times)
