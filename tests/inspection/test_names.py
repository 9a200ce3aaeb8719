from __future__ import annotations

import pytest

from aiockpt.inspection.names import is_rank_metadata, rank_of, step_of


@pytest.mark.parametrize(
    ("name", "of_a_rank", "rank"),
    [
        (".metadata", False, None),
        ("__12.metadata", True, None),
        ("__x.metadata", False, None),
        ("__3_0.distcp", False, 3),
        ("__30_11.distcp", False, 30),
        ("other.distcp", False, None),
        ("readme.txt", False, None),
    ],
)
def test_names(*, name: str, of_a_rank: bool, rank: int | None) -> None:
    assert (is_rank_metadata(name), rank_of(name)) == (of_a_rank, rank)


@pytest.mark.parametrize(
    ("path", "step"),
    [("run/step-100", 100), ("run/step_7/", 7), ("global_step12", 12), ("run/0004", 4), ("run/last", None), ("", None)],
)
def test_steps(path: str, step: int | None) -> None:
    assert step_of(path) == step
