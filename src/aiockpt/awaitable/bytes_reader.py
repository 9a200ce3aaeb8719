"""An object, or a range of it, read front to back on any loop, while what follows is fetched ahead."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from aiockpt.awaitable.operation import Operation
from aiockpt.blocking.reading import ObjectStream
from aiockpt.blocking.store import Store
from aiockpt.model import ObjectId
from aiockpt.scope import Scope


class BytesReader:
    """Iterates over an object's bytes as chunks, or reads so many at a time; made by ``Engine.open``. For one task.

    Up to ``CHUNKS_AHEAD`` chunks are fetched ahead, within the engine's byte budget. A cancelled read closes it.
    """

    def __init__(self, store: Store, source: ObjectId, start: int, end: int | None) -> None:
        self._stream = ObjectStream(store, source, start, end)
        self._scope = Scope()
        self._rest = memoryview(b"")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> memoryview:
        """The next chunk, whose memory is the caller's to keep."""
        chunk = await self._chunk()
        if not chunk:
            raise StopAsyncIteration
        return chunk

    async def read(self, nbytes: int = -1) -> bytes:
        """The next ``nbytes`` bytes, fewer only at the end; all that is left if negative."""
        pieces: list[memoryview] = []
        left = nbytes
        while left and (chunk := await self._chunk()):
            cut = len(chunk) if left < 0 else min(left, len(chunk))
            pieces.append(chunk[:cut])
            self._rest = chunk[cut:]
            left -= cut if left > 0 else 0
        return b"".join(pieces)

    async def aclose(self) -> None:
        """Stop fetching ahead; idempotent."""
        self._rest = memoryview(b"")
        await Operation(self._stream.close).settled()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _chunk(self) -> memoryview:
        """What was left over, else the next chunk; empty at the end."""
        rest, self._rest = self._rest, memoryview(b"")
        if rest:
            return rest
        return await Operation(lambda: next(self._stream, rest), scope=self._scope).settled()
