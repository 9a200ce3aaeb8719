"""Pickling a checkpoint's metadata, as stock DCP unpickles them.

Metadata have five objects for each tensor, of which there may be 50,000, all much alike. Python's pickler looks at each
of them anew. So it is given what they share, and what is rare; for the rest, opcodes are made once for all of one form,
and only what differs is filled in. Equal sizes, chunks and tensor properties are written once and shared by who loads
them, so the pickle is shorter, too.

Written is what the classes of DCP have, and a place's proof; what else somebody has set on their instances is not. Of
other classes the pickler writes everything: slower, as right.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from itertools import chain, count
from operator import attrgetter
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from aiockpt.dcp.proof import ATTRIBUTE

#: The classes of what is written by form, with all that they have.
_ATTRIBUTES: dict[type, tuple[str, ...]] = {
    BytesStorageMetadata: (),
    TensorStorageMetadata: ("properties", "size", "chunks"),
    TensorProperties: ("dtype", "layout", "requires_grad", "memory_format", "pin_memory"),
    ChunkStorageMetadata: ("offsets", "sizes"),
    MetadataIndex: ("fqn", "offset", "index"),
    _StorageInfo: ("relative_path", "offset", "length", "transform_descriptors"),
}


def _are_as_foreseen() -> bool:
    return all(names == tuple(field.name for field in fields(kind)) for kind, names in _ATTRIBUTES.items())


#: Those whose instances are written so: none, if another version of torch has others.
_FORESEEN = frozenset(_ATTRIBUTES) if _are_as_foreseen() else frozenset[type]()

_properties = attrgetter(*_ATTRIBUTES[TensorProperties])
_bounds = attrgetter(*_ATTRIBUTES[ChunkStorageMetadata])
_index = attrgetter(*_ATTRIBUTES[MetadataIndex])
_place = attrgetter(*_ATTRIBUTES[_StorageInfo])

#: Opcodes. An instance: its class, EMPTY_TUPLE NEWOBJ, EMPTY_DICT MARK, names and values, SETITEMS BUILD.
_NEW, _DICT, _SETITEMS, _BUILD = b")\x81", b"}(", b"u", b"ub"
_LIST, _APPENDS = b"](", b"e"
_NONE, _POP, _MARK_POP, _STOP = b"N", b"0", b"(0", b"."

_Form = tuple[object, ...]


def pickled(metadata: Metadata) -> bytes:
    """The pickle of metadata."""
    tensors = metadata.state_dict_metadata
    forms = [_form(tensor) for tensor in tensors.values()]
    models = {form: tensor for form, tensor in zip(forms, tensors.values(), strict=True) if form is not None}
    pickler = _Pickler()
    made = [pickler.remember(_parts(metadata, models.values())), pickler.remember_names(tensors)]
    known: dict[_Form | None, bytes] = {form: _opcodes_of(model, pickler.recall) for form, model in models.items()}
    made += pickler.recall[type(metadata)], _NEW, _DICT
    for name, value in vars(metadata).items():
        made.append(pickler.opcodes(name))
        if value is tensors:
            made += _DICT, *_described(tensors, forms, known, pickler), _SETITEMS
        elif value is metadata.storage_data and value is not None:
            made += _DICT, *_placed(value, pickler), _SETITEMS
        else:
            made.append(pickler.opcodes(value))
    return b"".join((*made, _BUILD, _STOP))


class _Pickler:
    """Python's pickler, between whose opcodes others may stand.

    Attributes:
        recall: opcodes that push what has been remembered, by its key. None's are there from the start.
    """

    def __init__(self) -> None:
        self._file = io.BytesIO()
        self._pickler = pickle.Pickler(self._file, protocol=4)
        self._memo: Mapping[int, tuple[int, object]] = {}
        self.recall: dict[object, bytes] = {None: _NONE}

    def opcodes(self, value: object) -> bytes:
        """The opcodes that push a value.

        A frame's length counts its STOP, in whose place stands MARK; POP behind the frame undoes it.
        """
        self._file.seek(0)
        self._file.truncate()
        self._pickler.dump(value)
        return self._file.getvalue().removesuffix(_STOP) + _MARK_POP

    def remember(self, parts: Mapping[object, object]) -> bytes:
        """Opcodes that push nothing, but let parts be recalled by their keys from then on."""
        made = self.opcodes(list(parts.values()))
        self._memo = self._pickler.memo.copy()
        for key, part in parts.items():  # a few, as (), are not kept in the memo
            self.recall[key] = _get(self._memo[id(part)][0]) if id(part) in self._memo else self.opcodes(part)
        return made + _POP

    def remember_names(self, names: Iterable[str]) -> bytes:
        """Likewise, thousands, without looking each up in the memo: a string that is new to it gets the next index."""
        new = [name for name in names if type(name) is str and id(name) not in self._memo and name not in self.recall]
        first = len(self._memo) + 1  # behind that of the list
        self.recall |= zip(new, map(_get, count(first)), strict=False)
        return self.opcodes(new) + _POP


def _form(tensor: Any) -> _Form | None:
    """All that the metadata say of a tensor, or of an object, of which they say nothing; None: left to the pickler."""
    kind = type(tensor)
    if kind is BytesStorageMetadata and kind in _FORESEEN:
        return ()
    if kind not in _FORESEEN or not _FORESEEN.issuperset(map(type, (tensor.properties, *tensor.chunks))):
        return None
    return (*_properties(tensor.properties), tensor.size, *map(_bounds, tensor.chunks))


def _parts(metadata: Metadata, models: Iterable[Any]) -> dict[object, object]:
    """What is shared, by itself or, where that has no hash, by what it says."""
    places = metadata.storage_data or {}
    parts: dict[Any, Any] = {kind: kind for kind in (type(metadata), *_ATTRIBUTES)}
    parts |= {name: name for name in (ATTRIBUTE, *chain(*_ATTRIBUTES.values()))}
    parts |= {place.relative_path: place.relative_path for place in places.values()}
    parts |= {index.offset: index.offset for index in places if index.offset is not None}
    for model in models:
        if type(model) is TensorStorageMetadata:
            parts.setdefault(model.size, model.size)
            parts[_properties(model.properties)] = model.properties
            for chunk in model.chunks:  # made anew, of sizes that are shared
                offsets, sizes = bounds = _bounds(chunk)
                parts[bounds] = ChunkStorageMetadata(parts.setdefault(offsets, offsets), parts.setdefault(sizes, sizes))
    return parts


def _described(
    tensors: Mapping[str, object], forms: Iterable[_Form | None], known: Mapping[_Form | None, bytes], pickler: _Pickler
) -> Iterator[bytes]:
    """Opcodes that push names and what is said of tensors in turn."""
    recall = pickler.recall
    for (name, tensor), form in zip(tensors.items(), forms, strict=True):
        pushed = recall.get(name) or pickler.opcodes(name)
        yield pushed + (known.get(form) or pickler.opcodes(tensor))


def _opcodes_of(model: Any, recall: Mapping[object, bytes]) -> bytes:
    """Opcodes that push what is said of a tensor, for all of its form."""
    new = recall[type(model)] + _NEW
    if type(model) is BytesStorageMetadata:
        return new
    chunks = b"".join(recall[_bounds(chunk)] for chunk in model.chunks)
    values = recall[_properties(model.properties)], recall[model.size], _LIST + chunks + _APPENDS
    names = (recall[name] for name in _ATTRIBUTES[TensorStorageMetadata])
    return b"".join((new, _DICT, *chain(*zip(names, values, strict=True)), _BUILD))


def _placed(places: Mapping[MetadataIndex, _StorageInfo], pickler: _Pickler) -> Iterator[bytes]:
    """Opcodes that push indices and places in turn."""
    recall = pickler.recall
    templates: dict[object, bytes] = {}
    for index, place in places.items():
        if type(index) not in _FORESEEN or type(place) not in _FORESEEN:
            yield pickler.opcodes(index) + pickler.opcodes(place)
            continue
        name, start, number = _index(index)
        path, offset, nbytes, transforms = _place(place)
        if (template := templates.get((path, start))) is None:
            template = templates[path, start] = _template(path, start, recall)
        fqn = recall.get(name) or pickler.opcodes(name)
        more = b"" if transforms is None else recall["transform_descriptors"] + pickler.opcodes(transforms)
        if (proof := getattr(place, ATTRIBUTE, None)) is not None:
            more += recall[ATTRIBUTE] + _bytes(proof)
        yield template % (fqn, _int(number), _int(offset), _int(nbytes), more)


def _template(path: str, start: torch.Size | None, recall: Mapping[object, bytes]) -> bytes:
    """Opcodes for an index and its place; to be filled in: name, number, offset, length, and what else there is."""
    gap = None
    pieces = (
        *(recall[MetadataIndex], _NEW, _DICT),
        *(recall["fqn"], gap, recall["offset"], recall[start], recall["index"], gap, _BUILD),
        *(recall[_StorageInfo], _NEW, _DICT),
        *(recall["relative_path"], recall[path], recall["offset"], gap, recall["length"], gap, gap, _BUILD),
    )
    return b"".join(b"%b" if piece is gap else piece.replace(b"%", b"%%") for piece in pieces)


def _get(index: int) -> bytes:
    return b"h%c" % index if index < 1 << 8 else b"j" + index.to_bytes(4, "little")


def _int(number: int | None) -> bytes:
    if number is None:
        return _NONE
    if 0 <= number < 1 << 8:
        return b"K%c" % number
    if 0 <= number < 1 << 31:
        return b"J" + number.to_bytes(4, "little")
    nbytes = number.bit_length() // 8 + 1
    return b"\x8a%c" % nbytes + number.to_bytes(nbytes, "little", signed=True)


def _bytes(data: bytes) -> bytes:
    size = len(data)
    return b"C%c" % size + data if size < 1 << 8 else b"B" + size.to_bytes(4, "little") + data
