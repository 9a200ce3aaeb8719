from __future__ import annotations

import pytest

from aiockpt.dcp import BinaryPrefixStrategy, DefaultPrefixStrategy, HexPrefixStrategy, RoundRobinPrefixStrategy
from aiockpt.dcp.names import (
    data_number,
    folder_of,
    folders_above,
    is_data,
    is_metadata,
    is_rank_metadata,
    is_temporary_metadata,
    rank_of,
    step_of,
)


@pytest.mark.parametrize(
    ("key", "folder", "above"),
    [
        ("x", "", [""]),
        ("a/x", "a/", ["a/", ""]),
        ("a/b/c/x", "a/b/c/", ["a/b/c/", "a/b/", "a/", ""]),
        ("a//x", "a//", ["a//", "a/", ""]),
        ("/x", "/", ["/", ""]),
    ],
)
def test_folders(key: str, folder: str, above: list[str]) -> None:
    assert folder_of(key) == folder
    assert folders_above(folder) == above


@pytest.mark.parametrize("folder", ["", "run/step-7/", "a.distcp/", ".metadata/"])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (".metadata", "metadata"),
        ("__0.metadata", "metadata"),
        ("__1023.metadata", "metadata"),
        (".metadata.tmp", "temporary"),
        ("__3.metadata.tmp", "temporary"),
        ("__0_0.distcp", "data"),
        ("mine-7-12.distcp", "data"),
        ("line\nbreak0.distcp", "data"),
        ("12.distcp", "data"),
        ("x.metadata", ""),
        ("__x.metadata", ""),
        (".metadata.bak", ""),
        (".metadata\n", ""),
        ("x.distcp", ""),
        (".distcp", ""),
        ("__0_0.distcp.tmp", ""),
        ("__0_٣.distcp", ""),
        ("__0_0.distcp/", ""),
        ("__0_0.DISTCP", ""),
        ("model.safetensors", ""),
        ("", ""),
    ],
)
def test_what_a_name_says(folder: str, name: str, kind: str) -> None:
    key = folder + name
    asked = {"metadata": is_metadata(key), "temporary": is_temporary_metadata(key), "data": is_data(key)}
    assert [what for what, yes in asked.items() if yes] == ([kind] if kind else [])


@pytest.mark.parametrize(
    "strategy",
    [
        DefaultPrefixStrategy(),
        HexPrefixStrategy(epoch_num=3),
        BinaryPrefixStrategy(min_prefix_length=2, prefix_count=4),
        RoundRobinPrefixStrategy(["a", "b/c"], epoch_num=0),
    ],
)
def test_what_the_strategies_name_is_data(strategy: DefaultPrefixStrategy) -> None:
    prefix = f"run/{strategy(3)}"
    assert is_data(f"{prefix}17.distcp")
    assert data_number(f"{prefix}17.distcp", prefix) == 17


@pytest.mark.parametrize("key", ["p12.distcp.tmp", "p.distcp", "q1.distcp", "p1/2.distcp", "pa1.distcp", "p-1.distcp"])
def test_no_number_of_this_prefix(key: str) -> None:
    assert data_number(key, "p") is None


@pytest.mark.parametrize("folder", ["", "run/__1_0.distcp/"])
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
def test_whose_it_is(folder: str, *, name: str, of_a_rank: bool, rank: int | None) -> None:
    key = folder + name
    assert (is_rank_metadata(key), rank_of(key)) == (of_a_rank, rank)


@pytest.mark.parametrize(
    ("path", "step"),
    [("run/step-100", 100), ("run/step_7/", 7), ("global_step12", 12), ("run/0004", 4), ("run/last", None), ("", None)],
)
def test_steps(path: str, step: int | None) -> None:
    assert step_of(path) == step
