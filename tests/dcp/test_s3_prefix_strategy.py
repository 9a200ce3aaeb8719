from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.testing._internal.distributed.fake_pg import FakeStore

from aiockpt.dcp.s3_prefix_strategy import (
    BinaryPrefixStrategy,
    DefaultPrefixStrategy,
    HexPrefixStrategy,
    NumericPrefixStrategy,
    RoundRobinPrefixStrategy,
    S3PrefixStrategyBase,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


class Octal(NumericPrefixStrategy):
    """A user's base."""

    def __init__(self, prefix_count: int) -> None:
        super().__init__(base=8, min_prefix_length=1, prefix_count=prefix_count)


class Letters(NumericPrefixStrategy):
    """A user's digits."""

    def _format_number(self, number: int, length: int) -> str:
        return super()._format_number(number, length).translate(str.maketrans("01", "ab"))


class Flat(S3PrefixStrategyBase):
    """A user's strategy."""

    def generate_prefix(self, rank: int) -> str:
        return f"rank{rank}_"


@pytest.fixture
def world_of_three() -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=3)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("rank", [0, 1, 17])
def test_the_default_is_the_rank(rank: int) -> None:
    assert DefaultPrefixStrategy()(rank) == f"__{rank}_"
    assert DefaultPrefixStrategy().generate_prefix(rank) == f"__{rank}_"


@pytest.mark.parametrize("strategy", [BinaryPrefixStrategy(), HexPrefixStrategy()])
def test_alone_there_is_one_pattern(strategy: NumericPrefixStrategy) -> None:
    assert strategy.prefix_count == 1
    assert strategy.prefix_map == ["0000000000"]
    assert strategy(0) == "0000000000/__0_"
    assert strategy(5) == "0000000000/__5_"


@pytest.mark.usefixtures("world_of_three")
def test_each_rank_has_a_pattern() -> None:
    strategy = BinaryPrefixStrategy(min_prefix_length=1)
    assert strategy.prefix_count == 3
    assert strategy.prefix_map == ["00", "10", "01"]
    assert BinaryPrefixStrategy(prefix_count=7).prefix_count == 7


PATTERNS: list[tuple[NumericPrefixStrategy, list[str]]] = [
    (BinaryPrefixStrategy(None, 1, 1), ["0"]),
    (BinaryPrefixStrategy(None, 1, 2), ["0", "1"]),
    (BinaryPrefixStrategy(None, 1, 5), ["000", "100", "010", "110", "001"]),
    (BinaryPrefixStrategy(None, 4, 3), ["0000", "1000", "0100"]),
    (HexPrefixStrategy(None, 1, 16), list("0123456789abcdef")),
    (HexPrefixStrategy(None, 1, 18), [*(f"{digit}0" for digit in "0123456789abcdef"), "01", "11"]),
    (HexPrefixStrategy(None, 3, 2), ["000", "100"]),
    (Octal(9), ["00", "10", "20", "30", "40", "50", "60", "70", "01"]),
    (Letters(2, None, 2, 3), ["aa", "ba", "ab"]),
    (Letters(36, prefix_count=2, min_prefix_length=1), ["a", "b"]),
]


@pytest.mark.parametrize(("strategy", "patterns"), PATTERNS)
def test_patterns_are_reversed_digits(strategy: NumericPrefixStrategy, patterns: list[str]) -> None:
    assert strategy.prefix_map == patterns
    for rank in range(2 * len(patterns)):
        assert strategy(rank) == f"{patterns[rank % len(patterns)]}/__{rank}_"


@given(st.sampled_from([(BinaryPrefixStrategy, 2), (HexPrefixStrategy, 16)]), st.integers(1, 300), st.integers(1, 12))
def test_a_pattern_reads_backwards_as_the_rank(kind: tuple[Any, int], count: int, least: int) -> None:
    make, base = kind
    strategy = make(prefix_count=count, min_prefix_length=least)
    assert [int(pattern[::-1], base) for pattern in strategy.prefix_map] == list(range(count))
    (length,) = {len(pattern) for pattern in strategy.prefix_map}
    assert length == least or (length > least and base ** (length - 1) < count)


@pytest.mark.parametrize(("epoch_num", "folder"), [(None, ""), (0, "epoch_0/"), (12, "epoch_12/")])
def test_the_epoch_stands_between(epoch_num: int | None, folder: str) -> None:
    binary = BinaryPrefixStrategy(epoch_num, min_prefix_length=2, prefix_count=2)
    assert (binary(1), binary.epoch_num) == (f"10/{folder}__1_", epoch_num)
    own = RoundRobinPrefixStrategy(["a", "b"], epoch_num)
    assert (own(1), own.epoch_num) == (f"b/{folder}__1_", epoch_num)


def test_attributes() -> None:
    strategy = HexPrefixStrategy(epoch_num=7, min_prefix_length=3, prefix_count=2)
    assert vars(strategy) == {
        "base": 16,
        "epoch_num": 7,
        "min_prefix_len": 3,
        "prefix_count": 2,
        "prefix_map": ["000", "100"],
    }


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"min_prefix_length": 0}, "min_prefix_length"),
        ({"min_prefix_length": -1}, "min_prefix_length"),
        ({"min_prefix_length": 1.5}, "min_prefix_length"),
        ({"epoch_num": "1"}, "epoch_num"),
        ({"epoch_num": 1.0}, "epoch_num"),
        ({"prefix_count": 0}, "prefix_count"),
        ({"prefix_count": -3}, "prefix_count"),
        ({"prefix_count": "3"}, "prefix_count"),
        ({"prefix_count": 2.0}, "prefix_count"),
    ],
)
@pytest.mark.parametrize("kind", [BinaryPrefixStrategy, HexPrefixStrategy])
def test_numbers_out_of_range_are_named(kind: Any, arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"^{named} must be"):
        kind(**arguments)


@pytest.mark.parametrize("base", [1, 0, -2, "2", 2.0])
def test_a_base_is_at_least_two(base: Any) -> None:
    with pytest.raises(ValueError, match=r"^base must be"):
        Letters(base)


def test_booleans_are_the_integers_that_they_are() -> None:
    assert BinaryPrefixStrategy(min_prefix_length=True, prefix_count=True).prefix_map == ["0"]


@pytest.mark.parametrize("rank", range(5))
def test_own_prefixes_take_turns(rank: int) -> None:
    strategy = RoundRobinPrefixStrategy(["a", "b/c"])
    assert strategy.user_prefixes == ["a", "b/c"]
    assert strategy(rank) == f"{['a', 'b/c'][rank % 2]}/__{rank}_"


@pytest.mark.parametrize("nothing", [[], (), None])
def test_own_prefixes_are_needed(nothing: Any) -> None:
    with pytest.raises(ValueError, match=r"^user_prefixes must not be empty$"):
        RoundRobinPrefixStrategy(nothing)


def test_an_epoch_of_own_prefixes_is_an_integer() -> None:
    with pytest.raises(ValueError, match=r"^epoch_num must be"):
        RoundRobinPrefixStrategy(["a"], "1")  # type: ignore[arg-type]


def test_the_bases_are_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        S3PrefixStrategyBase()  # type: ignore[abstract]
    with pytest.raises(TypeError, match="abstract"):
        NumericPrefixStrategy(2)


def test_a_users_strategy_works() -> None:
    assert Flat()(3) == "rank3_"


@pytest.mark.parametrize(
    "strategy",
    [DefaultPrefixStrategy(), HexPrefixStrategy(3), RoundRobinPrefixStrategy(["a"]), Octal(3), Flat()],
)
def test_strategies_pickle(strategy: S3PrefixStrategyBase) -> None:
    copy = pickle.loads(pickle.dumps(strategy))
    assert type(copy) is type(strategy)
    assert copy(1) == strategy(1)
