from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.planner import WriteItem

from aiockpt.dcp.files import FilePlan
from aiockpt.dcp.rounds import MAX_ROUNDS, Rounds
from aiockpt.errors import PreconditionFailed
from aiockpt.model import ObjectId

BASE = ObjectId("bucket", "run/ckpt")


def items(*names: str) -> Sequence[Sequence[WriteItem]]:
    """A file for each name, whose one item it stands for."""
    return [cast("Sequence[WriteItem]", (name,)) for name in names]


def named(files: Sequence[FilePlan]) -> dict[str, str]:
    return {file.path: cast("str", file.items[0]) for file in files}


def test_numbers_go_on_from_what_is_free() -> None:
    rounds = Rounds(BASE, "00/__3_")
    first = rounds.first(items("a", "b", "c"), 4)
    assert named(first) == {"00/__3_4.distcp": "a", "00/__3_5.distcp": "b", "00/__3_6.distcp": "c"}
    second = rounds.again([first[0], first[2]], 0)  # a listing that lags behind
    assert named(second) == {"00/__3_7.distcp": "a", "00/__3_8.distcp": "c"}
    assert named(rounds.again(second[1:], 100)) == {"00/__3_100.distcp": "c"}
    assert rounds.next_number == 101


def test_a_store_that_calls_everything_taken_is_not_tried_for_ever() -> None:
    rounds = Rounds(BASE, "__0_")
    files = rounds.first(items("a"), 0)
    for _ in range(MAX_ROUNDS - 1):
        files = rounds.again(files, 0)
    with pytest.raises(PreconditionFailed, match=f"run/ckpt/__0_{MAX_ROUNDS - 1}.distcp is taken"):
        rounds.again(files, 0)


@given(
    writers=st.lists(st.integers(1, 40), min_size=2, max_size=2),
    winners=st.lists(st.integers(0, 1), min_size=200, max_size=200),
    lag=st.booleans(),
)
def test_two_at_the_same_pace_both_get_through(writers: list[int], winners: list[int], lag: bool) -> None:
    """Round by round, whoever wins each number: nobody's number is another's, and no number is tried twice."""
    stands: dict[str, tuple[int, str]] = {}
    rounds = [Rounds(BASE, "__0_") for _ in writers]
    plans = [each.first(items(*(f"{n}" for n in range(count))), 0) for each, count in zip(rounds, writers, strict=True)]
    tried: list[set[str]] = [set(), set()]
    draws = iter(winners * 40)
    while any(plans):
        offers: dict[str, list[tuple[int, FilePlan]]] = {}
        for who, files in enumerate(plans):
            assert not tried[who] & named(files).keys()
            tried[who] |= named(files).keys()
            for file in files:
                offers.setdefault(file.path, []).append((who, file))
        taken: list[list[FilePlan]] = [[], []]
        for path, several in offers.items():
            winner = None if path in stands else several[next(draws) % len(several)]
            if winner is not None:
                stands[path] = winner[0], cast("str", winner[1].items[0])
            for who, file in several:
                if (who, file) != winner:
                    taken[who].append(file)
        free = 0 if lag else 1 + max(int(path.removeprefix("__0_").removesuffix(".distcp")) for path in stands)
        plans = [each.again(files, free) if files else [] for each, files in zip(rounds, taken, strict=True)]
    assert sorted(stands.values()) == sorted((who, f"{n}") for who, count in enumerate(writers) for n in range(count))
