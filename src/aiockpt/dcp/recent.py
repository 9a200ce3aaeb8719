"""What this process knows from its last saves, so that the next one need not ask."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

Key = TypeVar("Key", str, tuple[str, str, str])
Value = TypeVar("Value")

#: How many keys are remembered; a training overwrites one checkpoint or two.
REMEMBERED = 16


class Recent(Generic[Key, Value]):
    """The values that were noted last, by key. From any thread.

    Each step on the rows is atomic, since keys are such as no Python code is run for: with another hash, a thread could
    drop the row that ``popitem`` has found and is about to remove.
    """

    def __init__(self) -> None:
        self._rows: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        """What was noted for a key; None if that is not remembered."""
        return self._rows.get(key)

    def note(self, key: Key, value: Value) -> None:
        """Note it, and forget the oldest."""
        self._rows.pop(key, None)  # so that it comes last, whatever other threads drop meanwhile
        self._rows[key] = value
        while len(self._rows) > REMEMBERED:
            self._rows.popitem(last=False)
