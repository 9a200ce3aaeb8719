"""A local S3 endpoint for tests, demonstrations and benchmarks: ``LocalEndpoint``.

It runs in a process of its own, keeps objects in memory or in a folder, counts, and imitates slow networks
(``Shape``) and servers that misbehave (``Fault``).
"""

from aiockpt.testing.faults import Fault, FaultKind
from aiockpt.testing.handle import LocalEndpoint
from aiockpt.testing.shaping import Shape
from aiockpt.testing.stats import RequestRecord, Stats

__all__ = ["Fault", "FaultKind", "LocalEndpoint", "RequestRecord", "Shape", "Stats"]
