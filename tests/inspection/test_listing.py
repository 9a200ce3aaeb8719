from __future__ import annotations

from datetime import UTC, datetime

from aiockpt.inspection.listing import find_checkpoints
from aiockpt.s3.control import ListedObject


def row(key: str, size: int = 10, hour: int = 0) -> ListedObject:
    return ListedObject(key, size, "etag", datetime(2026, 1, 1, hour, tzinfo=UTC))


def test_complete_and_incomplete_by_step() -> None:
    rows: list[ListedObject | str] = [
        row("run/step-10/.metadata", 5, hour=3),
        row("run/step-10/__0_0.distcp", 100, hour=1),
        row("run/step-10/__1_0.distcp", 200, hour=2),
        row("run/step-9/__0_0.distcp", 70),
        row("run/best/.metadata"),
        row("run/log.txt"),
        "run/prefix/",
    ]
    found = find_checkpoints(rows)
    facts = [(one.path, one.complete, one.step, one.nbytes, one.objects, one.ranks) for one in found]
    assert facts == [
        ("run/step-9", False, 9, 70, 1, {0}),
        ("run/step-10", True, 10, 305, 2, {0, 1}),
        ("run/best", True, None, 10, 0, set()),
    ]
    assert found[1].modified == datetime(2026, 1, 1, 3, tzinfo=UTC)


def test_data_in_folders_of_a_prefix_strategy_belong_to_the_checkpoint_above() -> None:
    rows = [
        row("run/a/.metadata"),
        row("run/a/00/epoch_1/__0_0.distcp"),
        row("run/a/10/epoch_1/__1_0.distcp"),
        row("run/ab/__0_0.distcp"),
    ]
    assert [(one.path, one.objects, one.complete) for one in find_checkpoints(rows)] == [
        ("run/a", 2, True),
        ("run/ab", 1, False),
    ]


def test_rank_local_metadata_make_a_checkpoint() -> None:
    (found,) = find_checkpoints([row("a/__0.metadata"), row("a/__1.metadata"), row("a/__0_0.distcp")])
    assert found.metadata == ["a/__0.metadata", "a/__1.metadata"]


def test_a_checkpoint_at_the_root_of_a_bucket() -> None:
    (found,) = find_checkpoints([row(".metadata"), row("x/__0_0.distcp")])
    assert (found.path, found.objects) == ("", 1)


def test_nothing() -> None:
    assert find_checkpoints([]) == []
