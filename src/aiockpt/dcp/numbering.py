"""What a path's next data object is probably called, before a survey has said it.

One job: remember which numbers this process has used. It is a guess, since others write, too: who acts on it begins
nothing that cannot be dropped, and writes nothing before the survey has confirmed it.
"""

from __future__ import annotations

from aiockpt.dcp.recent import Recent
from aiockpt.model import ObjectId

_next_numbers: Recent[str, int] = Recent()


def likely_number(prefix: ObjectId) -> int:
    """The number that the next data object whose key starts with ``prefix`` will probably have."""
    return _next_numbers.get(prefix.uri) or 0


def note_used(prefix: ObjectId, next_number: int) -> None:
    """Data objects of ``prefix`` stand now, the last of them right before ``next_number``."""
    _next_numbers.note(prefix.uri, next_number)
