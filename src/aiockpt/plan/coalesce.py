"""Which requests fetch a set of byte ranges of one object: near ranges are merged, large ones split.

One job: from the ranges that are wanted to the requests that bring them. It knows nothing of destinations, of
how many requests run at once, or of why the two bounds are what they are.

Invariants: every byte of every range is covered by exactly one piece; no request is larger than the bound,
starts or ends in a gap, or holds overlapping pieces; between neighbouring pieces of a request lie at most
``max_gap_bytes``, and none beside a range of ``alone_bytes``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from aiockpt.model import ByteRange

#: Cuts of a range lie at multiples of this from its request's start: a cache line, the alignment of tensors
#: in memory and in archives, so that the kernel's copies into the tensors stay aligned behind a cut.
CUT_ALIGNMENT_BYTES = 64


class Piece(NamedTuple):
    """Part of a wanted range: ``length`` bytes from ``offset`` within the range ``read``, an input's index.

    This and ``Fetch`` are tuples, not dataclasses: there can be one for each of 20,000 ranges, and frozen
    dataclasses take three times as long to make.
    """

    read: int
    offset: int
    length: int


class Fetch(NamedTuple):
    """One request: bytes ``[start, end)`` of the object, and what they are for.

    Attributes:
        pieces: in object order; what lies between two of them is a gap, to be thrown away.
        starts: the object offset of each piece.
    """

    start: int
    end: int
    pieces: tuple[Piece, ...]
    starts: tuple[int, ...]


#: A wanted range as the passes below handle it: start, end, index into the input.
_Wanted = tuple[int, int, int]


def coalesce(
    ranges: Sequence[ByteRange], *, max_gap_bytes: int, max_request_bytes: int, alone_bytes: int
) -> list[Fetch]:
    """Plan the requests for ``ranges``, which may be in any order, be empty, overlap, or repeat.

    Ranges that overlap go to different requests: every range gets all its bytes, and a byte of the object is
    fetched as often as it is wanted. What is larger than one request is split into equal ones, without a
    small remainder.

    Args:
        ranges: what is wanted. Empty ranges need no request and get none.
        max_gap_bytes: largest gap that is fetched and thrown away to save a request.
        max_request_bytes: largest request, at least 1.
        alone_bytes: a range of this size or more pays for a request of its own: no gap beside it is fetched.

    Returns:
        The requests by object offset.
    """
    wanted = sorted((r.start, r.end, index) for index, r in enumerate(ranges) if r.start < r.end)
    fetches: list[Fetch] = []
    for chain in _chains(wanted, max_gap_bytes, alone_bytes):
        span = chain[-1][1] - chain[0][0]
        if span <= max_request_bytes:
            fetches.append(_whole(chain))
        else:
            fetches.extend(_cut(chain, _request_bytes(span, max_request_bytes)))
    fetches.sort(key=lambda fetch: fetch.start)
    return fetches


def _chains(wanted: list[_Wanted], max_gap_bytes: int, alone_bytes: int) -> list[list[_Wanted]]:
    """Group ranges, sorted by start, into chains without overlaps and without gaps that are too large.

    A range continues the chain whose end lies nearest before its start. Any other choice would, behind an
    overlap, leave two chains taking turns, each fetching the other's ranges as gaps.
    """
    chains: list[list[_Wanted]] = []
    ends: list[int] = []  # of the chains, ascending
    for item in wanted:
        start, end, _ = item
        at = bisect_right(ends, start) - 1
        if at >= 0 and (start == ends[at] or _worth_bridging(chains[at][-1], item, max_gap_bytes, alone_bytes)):
            chain = chains.pop(at)
            del ends[at]
            chain.append(item)
        else:
            chain = [item]
        at = bisect_right(ends, end)
        ends.insert(at, end)
        chains.insert(at, chain)
    return chains


def _worth_bridging(last: _Wanted, item: _Wanted, max_gap_bytes: int, alone_bytes: int) -> bool:
    (last_start, last_end, _), (start, end, _) = last, item
    return start - last_end <= max_gap_bytes and max(last_end - last_start, end - start) < alone_bytes


def _request_bytes(span: int, max_request_bytes: int) -> int:
    """The size of equal requests for a chain that spans ``span`` bytes."""
    requests = -(-span // max_request_bytes)
    exact = -(-span // requests)
    aligned = -(-exact // CUT_ALIGNMENT_BYTES) * CUT_ALIGNMENT_BYTES
    return aligned if aligned <= max_request_bytes else exact


def _whole(chain: list[_Wanted]) -> Fetch:
    """One request for all of a chain."""
    pieces = tuple([Piece(read, 0, end - start) for start, end, read in chain])
    return Fetch(chain[0][0], chain[-1][1], pieces, tuple([start for start, _, _ in chain]))


def _cut(chain: list[_Wanted], request_bytes: int) -> Iterator[Fetch]:
    """Split a chain into requests of at most ``request_bytes``, none of which starts or ends in a gap.

    A request whose end would lie in a gap ends before it and the next one starts behind it, so that each gets
    at least ``request_bytes`` further: gaps never make it more requests.
    """
    pieces: list[Piece] = []
    starts: list[int] = []
    position = limit = 0
    for start, end, read in chain:
        if pieces and start >= limit:
            yield Fetch(starts[0], position, tuple(pieces), tuple(starts))
            pieces, starts = [], []
        position = start
        while position < end:
            if not pieces:
                limit = position + request_bytes
            stop = min(end, limit)
            pieces.append(Piece(read, position - start, stop - position))
            starts.append(position)
            position = stop
            if position < end:
                yield Fetch(starts[0], position, tuple(pieces), tuple(starts))
                pieces, starts = [], []
    yield Fetch(starts[0], position, tuple(pieces), tuple(starts))
