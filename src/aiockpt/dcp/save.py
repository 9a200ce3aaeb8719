"""The save pipeline: DCP's write items become objects, sent from the tensors' own memory.

Runs on the thread that called DCP: it resolves items, frames them and takes one CRC32 over each, while the loop thread
sends what is ready. Tensors that must be copied first (other devices, scattered elements) are staged in blocks within
the engine's byte budget.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import IO, Any, cast

import torch
from torch.distributed.checkpoint._hf_utils import (
    CUSTOM_METADATA_KEY,
    DCP_VERSION_KEY,
    FORMAT_KEY,
    FORMAT_VALUE,
    HF_DCP_VERSION,
)
from torch.distributed.checkpoint.filesystem import SerializationFormat, _StorageInfo, _StorageWriterTransforms
from torch.distributed.checkpoint.planner import SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from aiockpt.archive.safetensors import build_header, file_order
from aiockpt.archive.torchsave import Framed, framable, framed, plain, row_major_frame, storage_view
from aiockpt.blocking.store import Store
from aiockpt.blocking.upload import BlockingUpload, ObjectWriter
from aiockpt.crc import crc32, crc32_combine
from aiockpt.dcp.collector import without_collector
from aiockpt.dcp.files import FilePlan, item_nbytes
from aiockpt.dcp.proof import MOST_WHOLE_BYTES, ProofWriter, attach, packed_whole
from aiockpt.dcp.snapshot import proof_of
from aiockpt.dcp.staging import Ring, slab_bytes, staged_blocks
from aiockpt.engine.upload import UploadStats
from aiockpt.errors import LocalProtocolError
from aiockpt.model import NOTHING, KiB, MiB, ObjectId
from aiockpt.observe.recorder import Recorder
from aiockpt.observe.report import Phase

#: Tensors below this are copied into staging memory with their frames: copying 256 KiB takes some 20 µs, less than what
#: three more views cost on their way through the transport.
COPY_BELOW_BYTES = 256 * KiB

#: Archives of tensors below this are fetched whole by every load, and proven as a whole. The others get a proof for
#: their slices, which a load may fetch alone (``load.TOGETHER_SPARE_BYTES``).
PROOF_FROM_BYTES = MOST_WHOLE_BYTES

#: Tensors that cannot be sent from where they are are staged in blocks of this size.
BLOCK_BYTES = 2 * MiB


#: What the metadata keep of an item beside its place: its proof, and the transforms that it went through.
_Note = tuple[bytes | None, Sequence[str] | None]


@dataclass(frozen=True, slots=True)
class Written:
    """What became of files.

    Attributes:
        results: where each item lies of those files that stand.
        taken: the files whose names others have taken meanwhile: nothing of them stands, and their items are to be
            written again under other names.
    """

    results: Sequence[WriteResult]
    taken: Sequence[FilePlan]


class SavePipeline:
    """Writes the files of one rank.

    Args:
        store: where to.
        base: the checkpoint: paths are below its key.
        planner: resolves items, on the calling thread.
        transforms: stream extensions; with any, items take the buffered path.
        serialization_format: torch.save archives, or one safetensors file per object.
        recorder: is told what is written.
    """

    def __init__(
        self,
        store: Store,
        base: ObjectId,
        planner: SavePlanner,
        transforms: _StorageWriterTransforms,
        serialization_format: SerializationFormat,
        recorder: Recorder,
    ) -> None:
        self._store = store
        self._base = base
        self._planner = planner
        self._transforms = transforms
        self._format = serialization_format
        self._recorder = recorder
        self._ring = Ring()
        self._standing_bytes = 0
        self._sessions: list[UploadStats] = []

    def write(self, likely: Sequence[FilePlan], named: Callable[[], Sequence[FilePlan]] | None = None) -> Written:
        """Write files, none over anything; returns when each of them stands, or has found its name taken.

        Args:
            likely: the files by the names that they will probably have. An upload of several parts is begun for the
                first of them, beside what ``named`` waits for, and dropped if that has another name for it.
            named: waits until it is known which names are free; returns the same files by these. None: they are.

        Raises:
            S3Exception: an object could not be written; whatever was begun has been aborted.
            ValueError: a tensor is sparse, or has no elements.
        """
        sizes = [file.estimated_nbytes() for file in likely]
        total_bytes = sum(sizes)
        done: list[tuple[FilePlan, int, list[WriteResult]]] = []
        with self._store.upload(total_bytes) as upload:
            self._sessions.append(upload.stats)
            self._expect(total_bytes)
            for file, writer in self._begin(upload, likely, named, sizes):
                with self._recorder.phase(Phase.STAGING):
                    results = self._write_file(writer, file)
                    writer.close()
                done.append((file, writer.tell(), results))
            self._expect(sum(nbytes for _, nbytes, _ in done))
        taken = {target.key for target in upload.gave_way}
        stand = [row for row in done if (self._base / row[0].path).key not in taken]
        self._standing_bytes += sum(nbytes for _, nbytes, _ in stand)
        return Written(
            [result for _, _, results in stand for result in results],
            [file for file, _, _ in done if (self._base / file.path).key in taken],
        )

    def _expect(self, nbytes: int) -> None:
        """So many bytes are wanted beside those that stand; what gave way was sent for nothing."""
        sessions = self._sessions  # not this pipeline: a recorder lives on, and must not keep what was saved
        self._recorder.expect(self._standing_bytes + nbytes, lambda: sum(one.sent_bytes for one in sessions))

    def _begin(
        self,
        upload: BlockingUpload,
        likely: Sequence[FilePlan],
        named: Callable[[], Sequence[FilePlan]] | None,
        sizes: Sequence[int],
    ) -> Iterator[tuple[FilePlan, ObjectWriter]]:
        """Each file with its writer, begun when it is its turn; that of the first is begun before its name is sure."""

        def begin(file: FilePlan, nbytes: int) -> ObjectWriter:
            return upload.object(self._base / file.path, NOTHING, total_bytes=nbytes, gives_way=True)

        early = begin(likely[0], sizes[0]) if likely else None
        files = named() if named is not None else likely
        if early is not None and likely[0].path != files[0].path:
            early.discard()
            early = None
        for file, nbytes in zip(files, sizes, strict=True):
            yield file, early or begin(file, nbytes)
            early = None

    def _write_file(self, writer: ObjectWriter, file: FilePlan) -> list[WriteResult]:
        """Serialized objects first, then tensors: the order of stock DCP."""
        objects = [item for item in file.items if item.type is WriteItemType.BYTE_IO]
        tensors = [item for item in file.items if item.type is not WriteItemType.BYTE_IO]
        if self._format is SerializationFormat.SAFETENSORS:
            return self._write_items(writer, objects, file) + self._write_safetensors(writer, tensors, file)
        return self._write_items(writer, objects + tensors, file)

    def _write_items(self, writer: ObjectWriter, items: Sequence[WriteItem], file: FilePlan) -> list[WriteResult]:
        """Items one behind the other."""
        bounds = [writer.tell()]
        notes: list[_Note] = []
        for item in items:
            notes.append(self._write_item(writer, item))
            bounds.append(writer.tell())
        return without_collector(
            lambda: [
                _result(item, file, start, end, *note)
                for item, (start, end), note in zip(items, pairwise(bounds), notes, strict=True)
            ]
        )

    def _write_item(self, writer: ObjectWriter, item: WriteItem) -> _Note:
        if item.type is WriteItemType.BYTE_IO:
            return self._write_bytes(writer, item)
        tensor = self._resolve(item)
        if self._transforms.extensions:
            whole = _standalone(tensor)
            return self._write_transformed(writer, item, lambda stream: torch.save(whole, stream))
        return _write_tensor(writer, tensor, self._ring), None

    def _write_bytes(self, writer: ObjectWriter, item: WriteItem) -> _Note:
        data = cast("io.BytesIO", self._planner.resolve_data(item))
        if self._transforms.extensions:
            return self._write_transformed(writer, item, lambda stream: stream.write(data.getbuffer()))
        proof = ProofWriter(None)
        proof.add(data.getbuffer())
        writer.copy_in(data.getbuffer())
        return proof.packed(), None

    def _write_transformed(self, writer: ObjectWriter, item: WriteItem, write: Callable[[IO[bytes]], object]) -> _Note:
        proof = ProofWriter(None)
        stream, descriptors = self._transforms.transform_save_stream(item, _WriterStream(writer, proof))
        write(stream)
        stream.close()
        return proof.packed(), descriptors or None

    def _write_safetensors(self, writer: ObjectWriter, items: Sequence[WriteItem], file: FilePlan) -> list[WriteResult]:
        """One safetensors file behind what was written so far; every item is said to start where it starts."""
        start = writer.tell()
        by_name = {item.index.fqn: item for item in items}
        if len(by_name) < len(items):
            raise LocalProtocolError(f"{file.path} would hold two chunks of one tensor, which safetensors cannot")
        tensors = {name: self._resolve(item) for name, item in by_name.items()}
        entries = [(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]
        writer.copy_in(build_header(entries, _safetensors_metadata(items)))
        proofs: dict[str, bytes] = {}
        for name, _, _ in file_order(entries):
            tensor = tensors.pop(name)
            proof = _proof(tensor)
            if tensor.is_contiguous() and framable(tensor):
                writer.refer_to(storage_view(tensor), tensor, blocks=proof)
            else:
                _write_blocks(writer, tensor, proof, self._ring)
            proofs[name] = proof.packed()
        return [_result(item, file, start, start + item_nbytes(item), proofs[item.index.fqn]) for item in items]

    def _resolve(self, item: WriteItem) -> torch.Tensor:
        """The tensor to be written.

        Raises:
            ValueError: it has no elements that lie in memory side by side.
        """
        tensor = cast("torch.Tensor", self._planner.resolve_data(item)).detach()
        if tensor.is_meta:
            raise ValueError(f"{item.index.fqn!r} is a meta tensor, which has no elements to be saved: give it memory")
        if tensor.layout is not torch.strided:
            kind = str(tensor.layout).removeprefix("torch.")
            raise ValueError(
                f"{item.index.fqn!r} is a {kind} tensor, which DCP cannot write: give it a dense one, of its indices "
                "and values or with to_dense()"
            )
        return tensor


def _write_tensor(writer: ObjectWriter, tensor: torch.Tensor, ring: Ring) -> bytes | None:
    """A tensor as torch.save writes it; returns its proof, unless only torch can write it or it is empty."""
    nbytes = tensor.nbytes
    proof = _proof(tensor) if nbytes >= PROOF_FROM_BYTES else None
    row_major = tensor.is_contiguous()
    if framable(tensor):
        crc = _write_framed(writer, tensor, proof)
    elif plain(tensor) and (surround := row_major_frame(tensor)) is not None:
        crc, row_major = _write_staged(writer, tensor, surround, proof, ring), True
    else:
        buffer = io.BytesIO()
        torch.save(_standalone(tensor), buffer)
        writer.copy_in(buffer.getbuffer())
        return None
    if not nbytes:
        return None
    return proof.packed(row_major=row_major) if proof else packed_whole(crc, row_major=row_major)


def _proof(tensor: torch.Tensor) -> ProofWriter:
    """What takes a tensor's proof, or has it."""
    return proof_of(tensor) or ProofWriter(tensor.nbytes, tensor.shape)


def _write_framed(writer: ObjectWriter, tensor: torch.Tensor, proof: ProofWriter | None) -> int:
    """A tensor from its own memory, copied together with its frame if it is small; returns its CRC32."""
    surround, payload = framed(tensor)
    if len(payload) < COPY_BELOW_BYTES:
        crc = proof.add(payload) if proof else crc32(payload)
        writer.copy_in(surround.head, payload, surround.tail(crc))
        return crc
    writer.copy_in(surround.head)
    crc = writer.refer_to(payload, tensor, blocks=proof)
    writer.copy_in(surround.tail(crc))
    return crc


def _write_staged(
    writer: ObjectWriter, tensor: torch.Tensor, surround: Framed, proof: ProofWriter | None, ring: Ring
) -> int:
    """A tensor on another device, or with scattered elements, row-major; returns its CRC32."""
    writer.copy_in(surround.head)
    crc = _write_blocks(writer, tensor, proof, ring)
    writer.copy_in(surround.tail(crc))
    return crc


def _write_blocks(writer: ObjectWriter, tensor: torch.Tensor, proof: ProofWriter | None, ring: Ring) -> int:
    """The elements of a tensor, row-major, staged block by block within the budget; returns their CRC32."""
    crc = 0
    for copy in staged_blocks(tensor, BLOCK_BYTES, writer.reserve, ring):
        staged_bytes = slab_bytes(copy.nbytes)
        part = writer.refer_to(storage_view(copy), copy, staged_bytes=staged_bytes, blocks=proof)
        crc = crc32_combine(crc, part, copy.nbytes)
    return crc


def _standalone(tensor: torch.Tensor) -> torch.Tensor:
    """On the CPU and without the rest of a larger storage, which torch.save would write, too."""
    tensor = tensor.cpu()
    return tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor


def _safetensors_metadata(items: Sequence[WriteItem]) -> dict[str, str]:
    """What stock DCP notes in a safetensors file: each chunk's place in its tensor."""
    places = {
        item.index.fqn: {"saved_offsets": item.tensor_data.chunk.offsets}
        for item in items
        if item.tensor_data is not None
    }
    return {CUSTOM_METADATA_KEY: json.dumps(places), DCP_VERSION_KEY: str(HF_DCP_VERSION), FORMAT_KEY: FORMAT_VALUE}


def _result(
    item: WriteItem, file: FilePlan, start: int, end: int, proof: bytes | None, transforms: Sequence[str] | None = None
) -> WriteResult:
    place = _StorageInfo(file.path, start, end - start, transforms)
    return WriteResult(item.index, end - start, attach(place, proof))


class _WriterStream(io.RawIOBase):
    """An ``ObjectWriter`` as the stream that DCP's extensions write to; closing it leaves the object open."""

    def __init__(self, writer: ObjectWriter, proof: ProofWriter) -> None:
        self._writer = writer
        self._proof = proof

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._proof.add(view)
        self._writer.copy_in(view)
        return len(view)

    def flush(self) -> None:
        """Nothing waits here. After the end, too: the collector may close this before a stream that flushes into it."""

    def tell(self) -> int:
        return self._writer.tell()
