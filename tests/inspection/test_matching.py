from __future__ import annotations

import pytest

from aiockpt.inspection.matching import name_filter

NAMES = ["layers.0.weight", "layers.0.bias", "layers.10.bias", "norm.weight"]


@pytest.mark.parametrize(
    ("globs", "regexes", "chosen"),
    [
        ([], [], NAMES),
        (["layers.0.*"], [], NAMES[:2]),
        (["weight"], [], []),
        ([], ["weight$"], [NAMES[0], NAMES[3]]),
        ([], ["10"], [NAMES[2]]),
        (["norm.*"], [r"^layers\.0\.b"], [NAMES[1], NAMES[3]]),
    ],
)
def test_any_pattern_chooses(globs: list[str], regexes: list[str], chosen: list[str]) -> None:
    assert [name for name in NAMES if name_filter(globs, regexes)(name)] == chosen


def test_a_broken_expression_is_named() -> None:
    with pytest.raises(ValueError, match=r"'\(' is no regular expression"):
        name_filter(regexes=["("])
