from __future__ import annotations

import pytest

from aiockpt.inspection.names import is_data, is_metadata, is_rank_metadata, rank_of, step_of


@pytest.mark.parametrize(
    ("name", "metadata", "of_a_rank", "data", "rank"),
    [
        (".metadata", True, False, False, None),
        ("__12.metadata", True, True, False, None),
        ("__x.metadata", False, False, False, None),
        ("__3_0.distcp", False, False, True, 3),
        ("__30_11.distcp", False, False, True, 30),
        ("other.distcp", False, False, True, None),
        ("readme.txt", False, False, False, None),
    ],
)
def test_names(*, name: str, metadata: bool, of_a_rank: bool, data: bool, rank: int | None) -> None:
    assert (is_metadata(name), is_rank_metadata(name), is_data(name), rank_of(name)) == (
        metadata, of_a_rank, data, rank,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("path", "step"),
    [("run/step-100", 100), ("run/step_7/", 7), ("global_step12", 12), ("run/0004", 4), ("run/last", None), ("", None)],
)
def test_steps(path: str, step: int | None) -> None:
    assert step_of(path) == step
