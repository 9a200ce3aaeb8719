"""Reading the pickle of one tensor without running it: a stack machine with 21 opcodes and four names.

One job: the facts in a ``data.pkl``. It exists because Python's unpickler, even with every global refused,
can be made to allocate without bound by a few bytes (a large memo index), and because here nothing is ever
called: a name that is not one of the four is refused, and the four only move facts about. Time and memory are
linear in the pickle's length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from aiockpt.archive.surprise import Surprise, require
from aiockpt.archive.tensor_pickle import NAMED_DTYPES, STORAGE_NAMES


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """What a pickle says of its tensor: in elements, but for the storage's length, which is in bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    key: str
    payload_nbytes: int


@dataclass(frozen=True, slots=True)
class _Name:
    """A global that the pickle names; nothing is imported."""

    text: str


@dataclass(frozen=True, slots=True)
class _Storage:
    """A reference to a record; *dtype* is None where the tensor has to say it."""

    dtype: torch.dtype | None
    key: str
    units: int


class _NoHooks:
    """An empty OrderedDict: the place where hooks were, once."""


_STORAGES: dict[str, torch.dtype | None] = {f"torch {name}": dtype for dtype, name in STORAGE_NAMES.items()}
_STORAGES["torch.storage UntypedStorage"] = None
_DTYPES = {f"torch {name}": dtype for name, dtype in NAMED_DTYPES.items()}


def tensor_facts(pickle: bytes) -> TensorFacts:
    """What *pickle* says, if it is the pickle of one plain CPU tensor (or Parameter).

    Raises:
        Surprise: it is not, or not a sound pickle.
    """
    try:
        facts = _Machine(pickle).run()
    except (IndexError, KeyError, ValueError) as exc:
        raise Surprise("the pickle is not sound, or not of a tensor") from exc
    require(isinstance(facts, TensorFacts), "the pickle is not of a tensor")
    return facts  # type: ignore[no-any-return]  # require() has just made sure


@dataclass(slots=True)
class _Machine:
    """The pickle's stack, marks and memo, of ints, bools, strings, tuples and this module's classes."""

    pickle: bytes
    at: int = 0
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def run(self) -> Any:
        while (opcode := self.take(1)) != b".":
            step = _STEPS.get(opcode)
            require(step, "the pickle has an opcode that no tensor needs")
            assert step is not None
            step(self)
        require(
            self.at == len(self.pickle) and len(self.stack) == 1 and not self.marks,
            "the pickle goes on after its end",
        )
        return self.stack.pop()

    def take(self, nbytes: int) -> bytes:
        start, self.at = self.at, self.at + nbytes
        require(self.at <= len(self.pickle), "the pickle is cut short")
        return self.pickle[start : self.at]

    def number(self, nbytes: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.take(nbytes), "little", signed=signed)

    def line(self) -> str:
        end = self.pickle.index(b"\n", self.at)
        text = self.take(end - self.at).decode("ascii")
        self.at = end + 1
        return text

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def remember(self, slot: int) -> None:
        self.memo[slot] = self.stack[-1]

    def collect(self, count: int) -> None:
        """Replace the top *count* values by a tuple of them."""
        start = len(self.stack) - count
        require(start >= (self.marks[-1] if self.marks else 0), "the pickle's stack runs empty")
        self.stack[start:] = [tuple(self.stack[start:])]

    def collect_to_mark(self) -> None:
        self.collect(len(self.stack) - self.marks.pop())

    def reduce(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        require(isinstance(arguments, tuple) and isinstance(name, _Name), "the pickle calls what is not a name")
        self.push(_CALLS[name.text](*_padded(arguments)))


def _padded(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Eight arguments: the most that any of the four names takes."""
    require(len(arguments) <= 8, "the pickle passes too many arguments")
    return arguments + (None,) * (8 - len(arguments))


def _protocol(machine: _Machine) -> None:
    require(machine.number(1) == 2, "the pickle is of another protocol")


def _name(machine: _Machine) -> None:
    machine.push(_Name(f"{machine.line()} {machine.line()}"))


def _storage(machine: _Machine) -> None:
    reference = machine.stack.pop()
    require(isinstance(reference, tuple) and len(reference) == 5, "the pickle refers to what is not a storage")
    kind, storage_type, key, location, units = reference
    require(isinstance(kind, str) and kind == "storage", "the pickle refers to what is not a storage")
    require(isinstance(location, str) and location == "cpu", "the stored tensor was not a CPU tensor")
    require(
        isinstance(storage_type, _Name) and isinstance(key, str) and _is_count(units),
        "the storage makes no sense",
    )
    machine.push(_Storage(_STORAGES[storage_type.text], key, units))


# fmt: off
_STEPS: dict[bytes, Callable[[_Machine], None]] = {
    b"\x80": _protocol,
    b"c": _name,
    b"Q": _storage,
    b"R": _Machine.reduce,
    b"q": lambda m: m.remember(m.number(1)),
    b"r": lambda m: m.remember(m.number(4)),
    b"h": lambda m: m.push(m.memo[m.number(1)]),
    b"j": lambda m: m.push(m.memo[m.number(4)]),
    b"(": lambda m: m.marks.append(len(m.stack)),
    b"t": _Machine.collect_to_mark,
    b")": lambda m: m.collect(0),
    b"\x85": lambda m: m.collect(1),
    b"\x86": lambda m: m.collect(2),
    b"\x87": lambda m: m.collect(3),
    b"X": lambda m: m.push(m.take(m.number(4)).decode()),
    b"K": lambda m: m.push(m.number(1)),
    b"M": lambda m: m.push(m.number(2)),
    b"J": lambda m: m.push(m.number(4, signed=True)),
    b"\x8a": lambda m: m.push(m.number(m.number(1), signed=True)),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
}
# fmt: on


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_counts(value: Any) -> bool:
    return isinstance(value, tuple) and all(map(_is_count, value))


def _ordered_dict(*arguments: Any) -> _NoHooks:
    _require_none(arguments, "the tensor has hooks")
    return _NoHooks()


def _parameter(data: Any, grad: Any, hooks: Any, *rest: Any) -> TensorFacts:
    require(isinstance(data, TensorFacts), "the parameter has no tensor")
    _require_plain(grad, hooks, rest)
    facts: TensorFacts = data
    return facts


def _tensor_v2(storage: Any, *arguments: Any) -> TensorFacts:
    require(isinstance(storage, _Storage) and storage.dtype is not None, "the tensor has no typed storage")
    return _facts(storage, storage.dtype, storage.units * storage.dtype.itemsize, arguments)


def _tensor_v3(storage: Any, *arguments: Any) -> TensorFacts:
    *common, dtype, metadata = arguments
    require(isinstance(storage, _Storage) and storage.dtype is None, "the tensor has no untyped storage")
    require(isinstance(dtype, _Name), "the tensor has no dtype")
    return _facts(storage, _DTYPES[dtype.text], storage.units, (*common, metadata))


def _facts(storage: _Storage, dtype: torch.dtype, payload_nbytes: int, arguments: tuple[Any, ...]) -> TensorFacts:
    offset, shape, stride, grad, hooks, *metadata = arguments
    _require_plain(grad, hooks, metadata)
    require(_is_count(offset) and _is_counts(shape) and _is_counts(stride), "the numbers make no sense")
    require(len(shape) == len(stride), "the tensor has not as many strides as dimensions")
    return TensorFacts(dtype, shape, stride, offset, storage.key, payload_nbytes)


def _require_plain(grad: Any, hooks: Any, metadata: Iterable[Any]) -> None:
    require(isinstance(grad, bool) and isinstance(hooks, _NoHooks), "the gradient or hooks make no sense")
    _require_none(metadata, "the tensor has metadata, such as a conjugate bit")


def _require_none(values: Iterable[Any], what: str) -> None:
    require(all(value is None for value in values), what)


_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils _rebuild_tensor_v2": _tensor_v2,
    "torch._utils _rebuild_tensor_v3": _tensor_v3,
    "torch._utils _rebuild_parameter": _parameter,
    "collections OrderedDict": _ordered_dict,
}
