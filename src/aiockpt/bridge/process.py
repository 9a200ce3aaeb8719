"""The bridges of this process, by name: started on first use, stopped at exit, and left to the parent by a fork.

A name is a loop thread. ``FOREGROUND`` is the one that everything runs on; others serve it (``Store`` names them), and
were asked for after what they serve. So they are stopped in the order in which they were started: what runs on one may
need the later ones to wind up.
"""

from __future__ import annotations

import atexit
import os
import threading

from aiockpt.bridge.bridge import Bridge

#: The loop thread that is there whenever any is.
FOREGROUND = "loop"

_lock = threading.Lock()
_bridges: dict[str, Bridge] = {}
_left_to_parent: list[Bridge] = []


def get_bridge(name: str = FOREGROUND, nice: int = 0) -> Bridge:
    """This process's bridge of that name, started if need be: with a thread that gives way (see ``give_way``)."""
    with _lock:
        if name not in _bridges:
            _bridges[name] = Bridge(name, nice)
        return _bridges[name]


def loop_cpu_s() -> dict[str, float]:
    """CPU seconds of each loop thread of this process so far, by name; see ``Bridge.cpu_s``."""
    with _lock:
        return {name: bridge.cpu_s for name, bridge in _bridges.items()}


def _stop_at_exit() -> None:
    for bridge in list(_bridges.values()):
        bridge.close()


def _forget_after_fork() -> None:
    """In a forked child there is no loop thread, and the lock may have been held by a thread that is not there.

    The parent's bridges are kept from being collected: closing their loops here would take the parent's sockets out of
    the epoll sets, which the two processes share.
    """
    global _lock  # noqa: PLW0603  # there is one for the process
    _lock = threading.Lock()
    for bridge in _bridges.values():
        bridge.forget_in_child()
        _left_to_parent.append(bridge)
    _bridges.clear()


atexit.register(_stop_at_exit)
os.register_at_fork(after_in_child=_forget_after_fork)
