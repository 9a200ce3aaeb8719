"""Unpickling that runs no code, and takes no more time and memory than the pickle's length allows.

Only the types that real checkpoints hold are constructed; any other name in the pickle is refused, naming it and the
way to allow it. Short pickles can be long work: what copies or hashes what it is given, again and again, is bounded
here; see ``opcodes`` for what is bounded before. It knows nothing of what metadata mean.
"""

from __future__ import annotations

import codecs
import enum
import io
import pathlib
import pickle
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence, Sized
from functools import partial
from types import NoneType
from typing import Any

import torch
from torch.distributed._shard.sharded_tensor.metadata import TensorProperties as ShardProperties
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties

from aiockpt.dcp.opcodes import looked_through
from aiockpt.errors import MetadataError

_ALLOWED: dict[str, frozenset[str]] = {
    "torch.distributed.checkpoint.metadata": frozenset({
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    }),
    "torch.distributed.checkpoint.filesystem": frozenset({"_StorageInfo"}),
    "torch.distributed._shard.sharded_tensor.metadata": frozenset({"MEM_FORMAT_ENCODING", "TensorProperties"}),
    "torch": frozenset({"device"} | {n for n, v in vars(torch).items() if isinstance(v, torch.dtype)}),
}  # fmt: skip

#: What stands for a name in the pickle: torch's function for layouts, without attributes that a pickle could set.
_LAYOUTS = {
    ("torch.serialization", "_get_layout"): {
        str(v): v for v in vars(torch).values() if isinstance(v, torch.layout)
    }.__getitem__
}


def _of(function: Callable[..., object], *kinds: type) -> Callable[..., object]:
    """``function``, for arguments of these types only: no others' hashes, reprs and copies."""

    def call(*args: object) -> object:
        if not all(type(arg) in kinds for arg in args):
            raise TypeError(f"arguments of types that {function} has in no checkpoint")
        return function(*args)

    return call


def _latin(text: str, encoding: str) -> bytes:
    """Stands for ``codecs.encode``, with which protocol 2 has bytes."""
    if encoding not in {"latin1", "latin-1"}:
        raise ValueError("bytes in an encoding that no pickler uses")
    return codecs.encode(text, "latin-1")


#: Types and functions that copy what they are given: one that is given a long list again and again makes a small pickle
#: fill the memory. Numbers would be taken for a length by bytearrays, and paths for all of their parts by paths.
_COPYING: dict[tuple[str, str], Callable[..., object]] = {
    ("_codecs", "encode"): _of(_latin, str),
    ("builtins", "bytearray"): _of(bytearray, bytes, str, list),
    ("builtins", "complex"): _of(complex, float, int),
    ("builtins", "frozenset"): frozenset,
    ("builtins", "set"): set,
    ("builtins", "slice"): _of(slice, int, NoneType),
    ("collections", "OrderedDict"): OrderedDict,
    ("pathlib", "PosixPath"): _of(pathlib.PosixPath, str),
    ("pathlib", "PurePosixPath"): _of(pathlib.PurePosixPath, str),
    ("pathlib", "PureWindowsPath"): _of(pathlib.PureWindowsPath, str),
    ("pathlib", "WindowsPath"): _of(pathlib.PureWindowsPath, str),
}

#: Of these there are few: a pickle can give them any hash.
_RARE = (complex, slice, pathlib.PurePath)

#: Modules as other Pythons name them: protocol 2, and Python 3.13.
_MODULES = {"__builtin__": "builtins", "pathlib._local": "pathlib"}

#: torch's own limit of dimensions.
_MAX_DIMENSIONS = 64

#: What a tuple or frozenset may hold in all, those in it included: it is hashed, and compared, anew with each use as a
#: key, which a pickle has in three bytes. Paths of state dicts have a few names.
_MAX_WEIGHT = 1000

#: Parts of tuples that are none themselves, for a quick look.
_FLAT = frozenset({str, int, bool, float, NoneType, torch.dtype, torch.layout})

#: What has a hash that differs from process to process, so that nobody can compute others of the same.
_UNFORESEEN = frozenset({str})

#: Keys of the same hash, which no two of a pickled dict have but by chance: whoever computes many makes that dict take
#: time by the square of their number.
_MAX_COLLISIONS = 1000

#: How much of a name that is refused is told.
_MAX_TOLD = 200

_Drafts = list[tuple[Any, type]]


def _size(dimensions: tuple[int, ...]) -> torch.Size:
    """Stands for ``torch.Size``, given a tuple that has been weighed."""
    if type(dimensions) is not tuple or len(dimensions) > _MAX_DIMENSIONS:
        raise ValueError(f"a size that is no tuple of {_MAX_DIMENSIONS} dimensions at most")
    return torch.Size(dimensions)


def _draft(kind: type, made: _Drafts, **methods: Callable[..., object]) -> type:
    """Stands for ``kind``, without arguments, until all is loaded; then what it has made becomes a ``kind``."""

    def new(cls: type) -> object:
        draft: Any = object.__new__(cls)
        made.append((draft, kind))
        return draft

    return type(kind.__name__, (kind,), {"__new__": new, **methods})


def _index_draft(made: _Drafts) -> type:
    """Its hash is that of its parts, which a pickle can set to anything, other indices included."""
    collisions = 0

    def hash_of(self: MetadataIndex) -> int:
        if type(self.fqn) is not str or type(self.offset) not in {torch.Size, NoneType}:
            raise ValueError("an index of other things than a name and an offset")
        return MetadataIndex.__hash__(self)

    def equals(self: MetadataIndex, other: object) -> bool:
        nonlocal collisions
        collisions += 1
        if collisions > _MAX_COLLISIONS:
            raise ValueError("the same indices again and again")
        return MetadataIndex.__eq__(self, other)

    return _draft(MetadataIndex, made, __hash__=hash_of, __eq__=equals)


def _properties_draft(kind: type, made: _Drafts) -> type:
    """It would tell all of what it does not expect as a memory format, which can be endlessly nested."""

    def set_state(self: TensorProperties, state: Sequence[object]) -> None:
        if not isinstance(state[3], enum.Enum):
            raise TypeError("properties of a tensor without a memory format")
        kind.__setstate__(self, state)  # type: ignore[attr-defined]  # both kinds have it

    return _draft(kind, made, __setstate__=set_state)


class _Bounds:
    """What the pickle may make in all.

    Copies no longer than itself, tuples and frozensets of ``_MAX_WEIGHT``, and few keys of the same hash.
    """

    def __init__(self, length: int) -> None:
        self._may_copy = length
        self._weights: dict[int, tuple[int, object]] = {}  # by id, of those that hold others; kept, so that ids stay
        self._first_of: dict[int, object] = {}  # by hash
        self._collisions = self._rarities = 0

    def bounded(self, kind: Callable[..., object]) -> Callable[..., object]:
        """``kind``, whose arguments count as copied."""

        def call(*args: Any) -> object:
            self._may_copy -= sum(len(arg) for arg in args if isinstance(arg, Sized))
            if self._may_copy < 0:
                raise ValueError("it copies the same again and again")
            made = kind(*args)
            if type(made) is frozenset:
                self.weigh(made)
            self._rarities += isinstance(made, _RARE)
            if self._rarities > _MAX_COLLISIONS:
                raise ValueError(f"more than {_MAX_COLLISIONS} paths, complex numbers and slices")
            return made

        return call

    def weigh(self, made: Collection[object]) -> None:
        """Refuse a tuple or frozenset that would be long to hash; each must be shown before those that it is in."""
        if len(made) <= _MAX_WEIGHT and _UNFORESEEN.issuperset(map(type, made)):  # as nearly all
            return
        if len(made) > _MAX_WEIGHT or not _FLAT.issuperset(map(type, made)):
            inner = [part for part in made if type(part) in {tuple, frozenset}]
            weight = len(made) + sum(self._weight(part) for part in inner)
            if weight > _MAX_WEIGHT:
                raise ValueError(f"a tuple of {weight} parts, with those of its parts: to hash it could take for ever")
            if any(isinstance(part, MetadataIndex) for part in made):
                raise ValueError("an index in a tuple, whose hash could be set to any afterwards")
            if inner:
                self._weights[id(made)] = weight, made
        self._note_hash(made)

    def _note_hash(self, made: object) -> None:
        """Refuse many different things of the same hash."""
        try:
            first = self._first_of.setdefault(hash(made), made)
        except TypeError:  # nor can it become a key
            return
        self._collisions += first is not made and first != made
        if self._collisions > _MAX_COLLISIONS:
            raise ValueError(f"more than {_MAX_COLLISIONS} things that share their hashes with others")

    def _weight(self, part: Any) -> int:
        weighed = self._weights.get(id(part))
        return weighed[0] if weighed else len(part)


class _Turns(io.BytesIO):
    """Read by Python code, of which a pickle takes a call for each 128 KiB, as much as the unpickler asks for at once.

    There other threads get their turn (an event loop, training): the unpickler itself never gives way, and takes 60 ms
    for the metadata of 20,000 tensors.
    """

    def peek(self, size: int, /) -> memoryview:
        """The bytes that come next."""
        return self.getbuffer()[self.tell() : self.tell() + size]


class SafeUnpickler(pickle.Unpickler):
    """An unpickler that finds only what it was told of, and can undo what was done to that.

    Args:
        data: a pickle, and nothing behind it.
        where: its URI, for messages.
        allowed: further types that may be constructed, on the user's word.

    Raises:
        MetadataError: it is cut short, something follows, or its opcodes are not harmless; see ``opcodes``.
    """

    def __init__(self, data: bytes, where: str, allowed: Iterable[type] = ()) -> None:
        pickled = looked_through(data)
        if (end := pickled.end) != len(data):
            raise MetadataError(f"the pickle ends at {end} and something follows: damaged; load an older checkpoint")
        super().__init__(_Turns(pickled.shown))
        self._where = where
        self._bounds = _Bounds(len(data))
        self._extra: dict[tuple[str, str], Callable[..., object]] = {
            **_LAYOUTS,
            **{name: self._bounds.bounded(kind) for name, kind in _COPYING.items()},
            ("torch", "Size"): partial(_size),  # one of its own, since pickles can set attributes
            **{(kind.__module__, kind.__qualname__): kind for kind in allowed},
        }
        self._before: list[tuple[Any, dict[str, Any]]] = []
        self._drafts: _Drafts = []

    def find_class(self, module: str, name: str) -> Any:
        """Called by pickle for every name."""
        module = _MODULES.get(module, module)
        if (found := self._extra.get((module, name))) is not None:
            return found
        if name in _ALLOWED.get(module, ()):
            found = self._harmless(super().find_class(module, name))
            self._extra[module, name] = found
            return found
        told = f"{module}.{name}"[:_MAX_TOLD]
        raise MetadataError(
            f"{self._where} names {told}, which checkpoints do not need: refused, as loading it could run code. If you "
            f"trust this checkpoint, pass allowed_metadata_types=[{name[:_MAX_TOLD]}] to the storage reader"
        )

    def _harmless(self, found: Any) -> Any:
        """What stands for a type of torch's while the pickle is loaded."""
        self._remember(found)
        if found is MetadataIndex:
            found = _index_draft(self._drafts)
        elif found in {TensorProperties, ShardProperties}:
            found = _properties_draft(found, self._drafts)
        elif isinstance(found, type) and issubclass(found, enum.Enum):
            return _of(found, int)  # others it would tell of
        else:
            return found
        self._remember(found)
        return found

    def persistent_load(self, made: Any) -> Any:
        """Called by pickle for tuples and frozensets as they are made: ``opcodes`` has seen to that."""
        self._bounds.weigh(made)
        return made

    def load(self) -> Any:
        """The pickled object."""
        try:
            return super().load()
        finally:
            for draft, kind in self._drafts:
                object.__setattr__(draft, "__class__", kind)
            self._drafts.clear()  # their classes are for the collector, and would keep them until it comes
            if self._restore():
                raise MetadataError(f"{self._where} sets attributes of classes, which checkpoints do not: refused")

    def _restore(self) -> bool:
        """Undo what the pickle did to the attributes of classes; returns whether it did anything."""
        changed = False
        for target, before in self._before:
            now = dict(vars(target))
            for name in now.keys() | before.keys():
                if name not in before:
                    delattr(target, name)
                elif now.get(name) is not before[name]:
                    setattr(target, name, before[name])
                else:
                    continue
                changed = True
        return changed

    def _remember(self, found: Any) -> None:
        """Classes, and the members of enumerations, are shared by the process, and pickles can set attributes."""
        if isinstance(found, type):
            shared: list[Any] = [found, *(found if issubclass(found, enum.Enum) else ())]
            self._before += [(target, dict(vars(target))) for target in shared]
