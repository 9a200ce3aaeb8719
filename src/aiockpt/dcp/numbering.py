"""What a path's next data object is probably called, before a survey has said it.

One job: remember which numbers this process has used. It is a guess, since others write, too: who acts on it begins
nothing that cannot be dropped, and writes nothing before the survey has confirmed it.
"""

from __future__ import annotations

from collections import OrderedDict

from aiockpt.model import ObjectId

#: How many prefixes are remembered; training overwrites one or two.
REMEMBERED = 16

_next_numbers: OrderedDict[ObjectId, int] = OrderedDict()  # its methods are atomic: saves are made on many threads


def likely_number(prefix: ObjectId) -> int:
    """The number that the next data object whose key starts with ``prefix`` will probably have."""
    return _next_numbers.get(prefix, 0)


def note_used(prefix: ObjectId, next_number: int) -> None:
    """Data objects of ``prefix`` stand now, the last of them right before ``next_number``."""
    _next_numbers.pop(prefix, None)  # so that it comes last, whatever other threads drop meanwhile
    _next_numbers[prefix] = next_number
    while len(_next_numbers) > REMEMBERED:
        _next_numbers.popitem(last=False)
