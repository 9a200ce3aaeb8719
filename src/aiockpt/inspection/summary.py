"""What a checkpoint holds, from its metadata alone. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from aiockpt.dcp.names import rank_of
from aiockpt.dcp.proof import ATTRIBUTE


@dataclass(frozen=True, slots=True)
class Place:
    """Where bytes lie: an object, by its path below the checkpoint, and a half-open range of it."""

    path: str
    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.path} bytes {self.start}-{self.end}"


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stored piece of a tensor.

    Attributes:
        offsets, sizes: which piece.
        place: where it lies; None if the metadata does not say.
        proof: the CRC32s of its blocks, as ``dcp.proof`` packs them; None if there are none.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    place: Place | None
    proof: bytes | None = None


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor: dtype without ``torch.``, shape, and the chunks that make it up."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    itemsize: int
    chunks: tuple[Chunk, ...]

    @property
    def elements(self) -> int:
        """How many it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return self.elements * self.itemsize

    @property
    def objects(self) -> list[str]:
        """The paths of the objects that hold it."""
        return sorted({chunk.place.path for chunk in self.chunks if chunk.place})


@dataclass(frozen=True, slots=True)
class Blob:
    """A serialized Python object; ``place`` and ``proof`` as a chunk's."""

    name: str
    place: Place | None
    proof: bytes | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """A checkpoint's tensors and serialized objects, by name."""

    tensors: tuple[Tensor, ...]
    blobs: tuple[Blob, ...]

    def places(self) -> Iterator[Place]:
        """Where everything lies, each place once."""
        chunks = (chunk.place for tensor in self.tensors for chunk in tensor.chunks)
        yield from dict.fromkeys(place for place in (*chunks, *(blob.place for blob in self.blobs)) if place)

    @property
    def objects(self) -> list[str]:
        """The paths of all objects."""
        return sorted({place.path for place in self.places()})

    @property
    def ranks(self) -> int:
        """How many ranks wrote it, as far as names say."""
        return len({rank_of(path) for path in self.objects} - {None})

    @property
    def elements(self) -> int:
        """Of all tensors."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors' elements."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def stored_nbytes(self) -> int:
        """Bytes that the items take in the bucket, their archives included."""
        return sum(place.end - place.start for place in self.places())


def summarize(parts: Iterable[Metadata]) -> Summary:
    """Summarize a checkpoint: its one metadata, or those of all ranks, whose chunks are put together."""
    tensors: dict[str, Tensor] = {}
    blobs: dict[str, Blob] = {}
    for part in parts:
        places: dict[MetadataIndex, _StorageInfo] = part.storage_data or {}
        for name, entry in part.state_dict_metadata.items():
            if not isinstance(entry, TensorStorageMetadata):
                info = places.get(MetadataIndex(name))
                blobs.setdefault(name, Blob(name, _place(info), _proof(info)))
                continue
            made = _tensor(name, entry, places)
            before = tensors.get(name)
            tensors[name] = _together(before, made) if before else made
    return Summary(
        tuple(tensors[name] for name in sorted(tensors)),
        tuple(blobs[name] for name in sorted(blobs)),
    )


def _tensor(name: str, entry: TensorStorageMetadata, places: dict[MetadataIndex, _StorageInfo]) -> Tensor:
    dtype = entry.properties.dtype
    stored = ((chunk, places.get(MetadataIndex(name, chunk.offsets))) for chunk in entry.chunks)
    chunks = tuple(
        Chunk(tuple(chunk.offsets), tuple(chunk.sizes), _place(info), _proof(info)) for chunk, info in stored
    )
    return Tensor(name, str(dtype).removeprefix("torch."), tuple(entry.size), dtype.itemsize, chunks)


def _together(one: Tensor, other: Tensor) -> Tensor:
    """A tensor of which two ranks wrote metadata: chunks at the same offsets are one, wherever it is stored."""
    chunks = {chunk.offsets: chunk for chunk in other.chunks}
    for chunk in one.chunks:
        if chunk.place is not None or chunk.offsets not in chunks:
            chunks[chunk.offsets] = chunk
    return Tensor(one.name, one.dtype, one.shape, one.itemsize, tuple(chunks[at] for at in sorted(chunks)))


def _proof(info: _StorageInfo | None) -> bytes | None:
    return getattr(info, ATTRIBUTE, None)


def _place(info: _StorageInfo | None) -> Place | None:
    return Place(info.relative_path, info.offset, info.offset + info.length) if info is not None else None
