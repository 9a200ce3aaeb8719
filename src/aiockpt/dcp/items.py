"""Stored items: what the metadata and a read item say together about bytes in the bucket. No I/O."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem

from aiockpt.crc import crc32
from aiockpt.dcp.proof import ATTRIBUTE, MOST_WHOLE_BYTES, Proof, is_packed_whole, packed_whole
from aiockpt.dcp.slices import check_slice
from aiockpt.errors import MetadataError
from aiockpt.model import ByteRange, ObjectId


class StoredItem(NamedTuple):
    """A read item and where its bytes lie.

    A tuple and not a dataclass: there can be 50,000 of them, and frozen dataclasses take three times as long to make.

    Attributes:
        read: DCP's item.
        source: the object.
        offset, length: of the item in the object, in bytes.
        transforms: names of the stream transforms it went through.
        dtype, shape: of the stored chunk; None for serialized objects.
        crc32s: of its blocks, packed; None if whoever wrote it noted none.
    """

    read: ReadItem
    source: ObjectId
    offset: int
    length: int
    transforms: Sequence[str]
    dtype: torch.dtype | None
    shape: tuple[int, ...]
    crc32s: bytes | None = None

    @property
    def end(self) -> int:
        """Where the item ends in the object."""
        return self.offset + self.length

    @property
    def span(self) -> ByteRange:
        """The whole item."""
        return ByteRange(self.offset, self.end)

    @property
    def payload_nbytes(self) -> int:
        """Bytes of the stored chunk's elements."""
        assert self.dtype is not None
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def wanted_nbytes(self) -> int:
        """Bytes of the elements that are wanted; of a serialized object, all of it."""
        if self.dtype is None:
            return self.length
        return math.prod(self.read.lengths) * self.dtype.itemsize

    @property
    def is_whole(self) -> bool:
        """Whether all of the stored chunk is wanted."""
        return self.read.lengths == self.shape

    @property
    def is_bare(self) -> bool:
        """Whether the item is just the elements: a safetensors file's. An archive is longer than its tensor."""
        return self.length == self.payload_nbytes

    def proof(self, nbytes: int) -> Proof | None:
        """The CRC32s of the blocks of its ``nbytes`` bytes of elements, or, of serialized objects, of its own.

        Raises:
            MetadataError: they do not fit.
        """
        if self.crc32s is None:
            return None
        try:
            return Proof.unpack(self.crc32s, nbytes)
        except MetadataError as exc:
            raise MetadataError(f"{self}: {exc}") from exc

    def is_known_by(self, elements: memoryview) -> bool:
        """Whether the metadata have the CRC32 of these for all its elements, row-major, as one block."""
        return len(elements) <= MOST_WHOLE_BYTES and self.crc32s == packed_whole(crc32(elements))

    def may_have(self, crc: int, nbytes: int) -> bool:
        """Whether this can be the CRC32 of all its elements, as far as the metadata tell.

        Args:
            crc: of the elements as they are stored.
            nbytes: how long these are: of a planner that cast them in silence, not what dtype and shape say.

        Raises:
            MetadataError: what they tell does not fit.
        """
        if self.crc32s is not None and is_packed_whole(self.crc32s, crc, nbytes):
            return True  # small ones are many: nothing is unpacked for each
        proof = self.proof(nbytes)
        return proof is None or proof.crc32() == crc

    def __str__(self) -> str:
        return f"{self.read.storage_index.fqn!r} in {self.source.uri}, bytes {self.offset}-{self.end}"


class Catalogue:
    """Looks items up in a checkpoint's metadata.

    Args:
        base: the checkpoint.
        metadata: of it, already checked by ``metadata.load_metadata``.
        storage_data: where its items lie.
    """

    def __init__(
        self, base: ObjectId, metadata: Metadata | None, storage_data: dict[MetadataIndex, _StorageInfo]
    ) -> None:
        self._base = base
        self._tensors = metadata.state_dict_metadata if metadata is not None else {}
        self._storage_data = storage_data

    def items(self, reads: Iterable[ReadItem], turn: float = 0.0) -> Iterator[StoredItem]:
        """What is stored for read items, by object and offset; each is made when it is asked for.

        Args:
            reads: what is wanted.
            turn: how far through the objects to begin, from 0 to 1; those before come last.

        Raises:
            MetadataError: nothing is, or what is said of it does not fit together.
        """
        by_path: defaultdict[str, list[tuple[int, ReadItem, _StorageInfo]]] = defaultdict(list)
        for read in reads:
            place = self._storage_data.get(read.storage_index)
            if place is None:
                raise no_place_for(read.storage_index, self._base)
            by_path[place.relative_path].append((place.offset, read, place))
        paths = sorted(by_path)
        first = int(turn * len(paths))
        for path in paths[first:] + paths[:first]:
            source = self._base / path
            last, end = -1, 0
            for offset, read, place in sorted(by_path.pop(path), key=itemgetter(0)):
                item = self._item(read, place, source)
                if last < offset < end:  # the items of a safetensors file all begin where it begins
                    raise MetadataError(f"{item} overlaps the item before it, which ends at {end}")
                last, end = offset, max(end, offset + place.length)
                yield item

    def wanted_nbytes(self, reads: Iterable[ReadItem]) -> int:
        """Bytes of the elements that read items want, and of the serialized objects; what has no place counts 0."""
        total = 0
        for read in reads:
            tensor = self._tensors.get(read.storage_index.fqn)
            if isinstance(tensor, TensorStorageMetadata):
                total += math.prod(read.lengths) * tensor.properties.dtype.itemsize
            elif (place := self._storage_data.get(read.storage_index)) is not None:
                total += place.length
        return total

    def _item(self, read: ReadItem, place: _StorageInfo, source: ObjectId) -> StoredItem:
        dtype, shape = (None, ()) if read.type is LoadItemType.BYTE_IO else self._chunk(read)
        # This field wasn't present in older checkpoints.
        transforms = getattr(place, "transform_descriptors", None) or ()
        crc32s = getattr(place, ATTRIBUTE, None)
        return StoredItem(read, source, place.offset, place.length, transforms, dtype, shape, crc32s)

    def _chunk(self, read: ReadItem) -> tuple[torch.dtype | None, tuple[int, ...]]:
        """dtype and shape of the stored chunk; (None, ()) if the metadata does not say: torch then has to."""
        index = read.storage_index
        tensor = self._tensors.get(index.fqn)
        if not isinstance(tensor, TensorStorageMetadata):
            return None, ()
        shape = tuple(_chunk_at(tensor.chunks, index).sizes) if index.offset is not None else tuple(tensor.size)
        if shape and min(shape) < 0:
            raise MetadataError(f"{self._base.uri}: {index.fqn!r} has a shape that no tensor has: {shape}")
        if read.lengths == shape and not any(read.storage_offsets):  # the whole chunk: by far the most common
            return tensor.properties.dtype, shape
        try:
            check_slice(shape, read.storage_offsets, read.lengths)
        except ValueError as exc:
            raise MetadataError(f"{self._base.uri}: {index.fqn!r}: {exc}") from exc
        return tensor.properties.dtype, shape


def no_place_for(index: MetadataIndex, base: ObjectId) -> MetadataError:
    """What to raise for an item that the planner wants, and whose place the metadata of ``base`` does not say."""
    return MetadataError(f"{base.uri}: the metadata has no place for {index.fqn!r}: incomplete checkpoint?")


def _chunk_at(chunks: Sequence[ChunkStorageMetadata], index: MetadataIndex) -> ChunkStorageMetadata:
    """The chunk that an index means; its position is a hint, its offset the truth."""
    hint = index.index
    if hint is not None and 0 <= hint < len(chunks) and chunks[hint].offsets == index.offset:
        return chunks[hint]
    for chunk in chunks:
        if chunk.offsets == index.offset:
            return chunk
    raise MetadataError(f"the metadata has no chunk of {index.fqn!r} at {index.offset}: incomplete checkpoint?")
