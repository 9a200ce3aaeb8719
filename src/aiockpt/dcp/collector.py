"""Python's cyclic garbage collector, kept away while thousands of objects are made at once.

It finds nothing in the objects that pickling, unpickling and the items of a plan are made of, but looks at all of them
again and again. Nothing waits and no user code runs while it is paused: it is the process's, and other threads make
garbage, too.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Without the collector, if it was running; what has been made meanwhile is looked at once, afterwards."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
