from __future__ import annotations

import pytest

from aiockpt.errors import LocalProtocolError
from aiockpt.testing import Fault, FaultKind, LocalEndpoint, Shape


@pytest.mark.parametrize(
    ("method", "path", "body", "reason"),
    [
        ("GET", "/nothing", None, "no such resource"),
        ("POST", "/faults", {"kind": "odd"}, "odd"),
        ("PUT", "/shape", {"speed": 1}, "speed"),
        ("PUT", "/shape", b"{", "Expecting"),
        ("POST", "/object/bucket/none", {"flip_bit_at_byte": 0}, "NoSuchKey"),
        ("POST", "/object/bucket/there", {"flip_bit_at_byte": 1}, "no byte 1"),
    ],
)
def test_refusals(
    endpoint: LocalEndpoint, method: str, path: str, body: dict[str, object] | bytes | None, reason: str
) -> None:
    endpoint.replace_object("bucket", "there", b"x")
    with pytest.raises(LocalProtocolError, match=reason):
        endpoint._admin(method, path, body)


def test_what_it_does_is_not_counted(endpoint: LocalEndpoint) -> None:
    endpoint.set_shape(Shape(first_byte_latency_s=60.0))
    endpoint.add_fault(Fault(FaultKind.RESET, count=None))
    endpoint.replace_object("bucket", "a b", b"x")
    stats = endpoint.stats()
    assert (stats.requests_total, stats.connections_opened, stats.faults) == (0, 0, 0)
