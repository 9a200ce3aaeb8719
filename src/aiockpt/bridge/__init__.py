"""From threads to event loops: loop threads, what they do for others, and what is leased on them."""

from aiockpt.bridge.bridge import Bridge
from aiockpt.bridge.calls import Call
from aiockpt.bridge.priority import give_way
from aiockpt.bridge.process import FOREGROUND, get_bridge, loop_cpu_s
from aiockpt.bridge.threads import refuse_loop_thread
from aiockpt.bridge.waiting import next_of, outcome_of, wait_for

__all__ = [
    "FOREGROUND",
    "Bridge",
    "Call",
    "get_bridge",
    "give_way",
    "loop_cpu_s",
    "next_of",
    "outcome_of",
    "refuse_loop_thread",
    "wait_for",
]
