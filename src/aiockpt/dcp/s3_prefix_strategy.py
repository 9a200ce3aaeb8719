"""Prefix strategies: where below a checkpoint's path each rank's data objects lie.

S3 scales its request rate by key prefix, so that ranks spread over prefixes that differ early in the key can
read and write more at once. One job: names. A strategy knows neither bucket nor path, and does no I/O.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import torch.distributed as dist

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


class S3PrefixStrategyBase(abc.ABC):
    """Maps ranks to key prefixes; subclasses say how. To be pickled with the writer that it is given to."""

    def __call__(self, rank: int) -> str:
        """Same as `generate_prefix`."""
        return self.generate_prefix(rank)

    @abc.abstractmethod
    def generate_prefix(self, rank: int) -> str:
        """Beginning of the names of the data objects of ``rank``, relative to the checkpoint's path."""


class DefaultPrefixStrategy(S3PrefixStrategyBase):
    """``__<rank>_``: all objects side by side, as DCP names them."""

    def generate_prefix(self, rank: int) -> str:
        """``__<rank>_``."""
        return _rank_prefix(rank)


class NumericPrefixStrategy(S3PrefixStrategyBase):
    """``<pattern>/[epoch_<n>/]__<rank>_``: the pattern has a number's digits, least significant first.

    The number is the rank modulo ``prefix_count``. As its fastest changing digit comes first, the keys of
    neighbouring ranks differ as early as can be. Abstract: a subclass chooses the base, or digits of its own
    (`_format_number`).

    Args:
        base: of the digits, at least 2; above 36 only with digits of one's own.
        epoch_num: adds ``epoch_<n>``; None: does not.
        min_prefix_length: digits of a pattern at least.
        prefix_count: how many patterns; None: as many as torch's default process group has ranks, one if
            there is no group.

    Attributes:
        min_prefix_len: the ``min_prefix_length`` given.
        prefix_map: the patterns, by rank modulo ``prefix_count``.

    Raises:
        ValueError: an argument that is not an integer or out of range.
        TypeError: not a subclass.
    """

    def __init__(
        self,
        base: int,
        epoch_num: int | None = None,
        min_prefix_length: int = 10,
        prefix_count: int | None = None,
    ) -> None:
        if type(self) is NumericPrefixStrategy:
            raise TypeError("Can't instantiate abstract class NumericPrefixStrategy")
        self.base = _integer_from(2, base, "base")
        self.epoch_num = _checked_epoch(epoch_num)
        self.min_prefix_len = _integer_from(1, min_prefix_length, "min_prefix_length")
        count = _world_size() if prefix_count is None else prefix_count
        self.prefix_count = _integer_from(1, count, "prefix_count")
        length = max(self.min_prefix_len, _digits_needed(self.prefix_count, self.base))
        self.prefix_map = [self._format_number(number, length)[::-1] for number in range(self.prefix_count)]

    def generate_prefix(self, rank: int) -> str:
        """``<pattern>/epoch_<n>/__<rank>_``, or without the epoch if there is none."""
        pattern = self.prefix_map[rank % len(self.prefix_map)]
        return _prefix(pattern, self.epoch_num, rank)

    def _format_number(self, number: int, length: int) -> str:
        """``number`` in the base, most significant digit first, zeros in front to make ``length`` digits."""
        digits = ""
        while number:
            number, digit = divmod(number, self.base)
            digits = _DIGITS[digit] + digits
        return digits.zfill(length)


class BinaryPrefixStrategy(NumericPrefixStrategy):
    """Patterns of 0 and 1. Arguments as in `NumericPrefixStrategy`."""

    def __init__(
        self, epoch_num: int | None = None, min_prefix_length: int = 10, prefix_count: int | None = None
    ) -> None:
        super().__init__(2, epoch_num, min_prefix_length, prefix_count)


class HexPrefixStrategy(NumericPrefixStrategy):
    """Patterns of 0 to 9 and a to f. Arguments as in `NumericPrefixStrategy`."""

    def __init__(
        self, epoch_num: int | None = None, min_prefix_length: int = 10, prefix_count: int | None = None
    ) -> None:
        super().__init__(16, epoch_num, min_prefix_length, prefix_count)


class RoundRobinPrefixStrategy(S3PrefixStrategyBase):
    """``<prefix>/[epoch_<n>/]__<rank>_`` with the user's own prefixes in turn.

    Args:
        user_prefixes: not empty; without a slash at their end.
        epoch_num: adds ``epoch_<n>``; None: does not.

    Raises:
        ValueError: no prefixes, or ``epoch_num`` is not an integer.
    """

    def __init__(self, user_prefixes: Sequence[str], epoch_num: int | None = None) -> None:
        if not user_prefixes:
            raise ValueError("user_prefixes must not be empty")
        self.user_prefixes = user_prefixes
        self.epoch_num = _checked_epoch(epoch_num)

    def generate_prefix(self, rank: int) -> str:
        """``<prefix>/epoch_<n>/__<rank>_``, or without the epoch if there is none."""
        return _prefix(self.user_prefixes[rank % len(self.user_prefixes)], self.epoch_num, rank)


def _prefix(folder: str, epoch_num: int | None, rank: int) -> str:
    epoch = "" if epoch_num is None else f"epoch_{epoch_num}/"
    return f"{folder}/{epoch}{_rank_prefix(rank)}"


def _rank_prefix(rank: int) -> str:
    return f"__{rank}_"


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _digits_needed(count: int, base: int) -> int:
    """Fewest digits that tell ``count`` numbers apart."""
    digits = 1
    while base**digits < count:
        digits += 1
    return digits


def _integer_from(least: int, value: int, name: str) -> int:
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    return value


def _checked_epoch(epoch_num: int | None) -> int | None:
    if epoch_num is not None and not isinstance(epoch_num, int):
        raise ValueError(f"epoch_num must be None or an integer, got {epoch_num!r}")
    return epoch_num
