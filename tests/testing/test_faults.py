from __future__ import annotations

import pytest

from aiockpt.testing.faults import Fault, FaultBook, FaultKind


def hits(fault: Fault, requests: int, operation: str = "GetObject", key: str = "key") -> list[bool]:
    book = FaultBook()
    book.add(fault)
    return [bool(book.match(operation, key)) for _ in range(requests)]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault(FaultKind.CLOSE), [True, False, False, False]),
        (Fault(FaultKind.CLOSE, skip=1, count=2), [False, True, True, False]),
        (Fault(FaultKind.CLOSE, skip=2, count=None), [False, False, True, True]),
        (Fault(FaultKind.CLOSE, operation="PutObject", count=None), [False] * 4),
        (Fault(FaultKind.CLOSE, operation="GetObject", key="ke", count=None), [True] * 4),
        (Fault(FaultKind.CLOSE, key="other", count=None), [False] * 4),
        (Fault(FaultKind.CLOSE, probability=0.0, count=None), [False] * 4),
    ],
)
def test_which_requests_are_hit(fault: Fault, expected: list[bool]) -> None:
    assert hits(fault, 4) == expected


def test_probability_is_repeatable() -> None:
    fault = Fault(FaultKind.CLOSE, count=None, probability=0.3, seed=7)
    drawn = hits(fault, 1000)
    assert drawn == hits(fault, 1000)
    assert 250 < sum(drawn) < 350


def test_a_request_meets_one_fault_of_each_kind() -> None:
    book = FaultBook()
    first, second, other = (
        Fault(FaultKind.RESET, after_bytes=1),
        Fault(FaultKind.RESET, after_bytes=2),
        Fault(FaultKind.CLOSE),
    )
    for fault in (first, second, other):
        book.add(fault)
    disturbance = book.match("GetObject", "key")
    assert disturbance.get(FaultKind.STALL, FaultKind.RESET) == first
    assert disturbance.get(FaultKind.CLOSE) == other
    assert disturbance.get(FaultKind.STALL) is None
    book.clear()
    assert not book.match("GetObject", "key")
