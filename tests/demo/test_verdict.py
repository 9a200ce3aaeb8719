from __future__ import annotations

import pytest

from aiockpt.demo.verdict import check

SEVEN = dict.fromkeys("abcdefg", "x")


@pytest.mark.parametrize(
    ("expected", "actual", "passed", "verdict"),
    [
        ({"a": "x"}, {"a": "x"}, True, "identical"),
        ({"a": "x", "b": "y"}, {"b": "y", "a": "x"}, True, "identical"),
        ({"a": "x"}, {"a": "y"}, False, "1 of 1 differ: a"),
        ({"a": "x"}, {}, False, "1 of 1 differ: a"),
        ({"a": "x"}, {"a": "x", "b": "y"}, False, "1 of 2 differ: b"),
        (SEVEN, {}, False, "7 of 7 differ: a, b, c, d, e and 2 more"),
        ({}, {}, False, "nothing to compare"),
    ],
)
def test_check(expected: dict[str, str], actual: dict[str, str], passed: bool, verdict: str) -> None:
    found = check("what", expected, actual)
    assert (found.passed, found.verdict) == (passed, verdict)
