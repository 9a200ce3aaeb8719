"""Threads that give way: what works in the background should take processors that nobody else wants."""

from __future__ import annotations

import os
import sys
import threading


def give_way(nice: int) -> None:
    """Have the kernel prefer other threads to this one, from now on; without privileges there is no way back.

    Threads that it starts from then on inherit that. Without effect except on Linux, where a nice value belongs to a
    thread and not to the process (sched(7)), and if the thread's is higher already.

    Args:
        nice: from 0 (as usual) to 19 (1.5 % of a processor that another thread wants, too).
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        if nice > os.getpriority(os.PRIO_PROCESS, thread):
            os.setpriority(os.PRIO_PROCESS, thread, nice)
