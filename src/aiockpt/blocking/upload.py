"""An upload fed from a thread: write objects from memory; parts leave while the next ones are being made.

Tiny writes are copied into staging memory, which the engine's byte budget bounds: a writer that runs ahead of the
network waits there. Large memory is sent from where it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from functools import partial
from types import TracebackType
from typing import Self

from aiockpt.bridge import Bridge, Call
from aiockpt.crc import BlockCrcs
from aiockpt.engine.assembler import PartAssembler
from aiockpt.engine.budget import ByteBudget
from aiockpt.engine.engine import LoopEngine
from aiockpt.engine.upload import OutgoingObject, OutgoingPart, Upload, UploadStats
from aiockpt.model import ANYTHING, ObjectId, Replaces


class BlockingUpload:
    """See the module. A context manager for one thread; made by ``Store.upload``.

    Before each part it asks ``pause_s`` how long to pause. ``in_background``: whether something else goes on beside it;
    ``total_bytes``: of all objects together, if that is known: see ``LoopEngine.part_sizes``.

    Leaving the block waits until every object stands; leaving it with an exception aborts those that do not.
    """

    def __init__(
        self,
        bridge: Bridge,
        engine: LoopEngine,
        pause_s: Callable[[], float],
        *,
        in_background: bool,
        total_bytes: int | None,
    ) -> None:
        self.engine = engine
        self.part_sizes = partial(engine.part_sizes, in_background=in_background, upload_bytes=total_bytes)
        self._bridge = bridge
        self._pause_s = pause_s
        self._staging = Staging(engine.budget)
        self._upload: Upload
        self._call: Call[UploadStats]

    @property
    def stats(self) -> UploadStats:
        """What has been done so far."""
        return self._upload.stats

    @property
    def gave_way(self) -> Collection[ObjectId]:
        """The objects that were left out, since something stands there; to be asked when the block has been left."""
        return self._upload.gave_way

    def object(
        self,
        target: ObjectId,
        replaces: Replaces = ANYTHING,
        *,
        total_bytes: int | None = None,
        gives_way: bool = False,
    ) -> ObjectWriter:
        """Begin an object; write it, then ``close`` (or ``discard``) it.

        Args:
            target: where it goes.
            replaces: what it may replace.
            total_bytes: its size, or about that, if that is known: its parts are then of one size, and if there will be
                several, a multipart upload is begun at once.
            gives_way: if it would replace something else than it may, it is left out, and nothing fails.
        """
        return ObjectWriter(self, self._upload.begin(target, replaces, gives_way=gives_way), total_bytes)

    def submit(self, outgoing: OutgoingObject, part: OutgoingPart) -> None:
        """Hand a part of ``outgoing`` over to the loop, when it is time for it."""
        if pause_s := self._pause_s():
            self._call.wait(pause_s)
        self.raise_if_failed()
        self._staging.submitted(part)
        self._bridge.call_soon(outgoing.submit, part)

    def call_soon(self, step: Callable[[], None]) -> None:
        """Have a step of an object done on the loop, after what was submitted before."""
        self._bridge.call_soon(step)

    def reserve(self, nbytes: int) -> None:
        """Wait until ``nbytes`` more may be staged."""
        self.raise_if_failed()  # first: in a forked child nothing would be freed
        self._staging.reserve(nbytes)

    def raise_if_failed(self) -> None:
        """Raise the upload's failure if there is one: nothing written from now on would arrive."""
        if self._call.done:
            self._call.result()

    def __enter__(self) -> Self:
        self._upload = Upload(self.engine, on_sent=self._staging.sent)
        self._call = self._bridge.start(self._upload.run, on_end=self._staging.end)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is None:
            self._bridge.call_soon(self._upload.finish)
            self._call.result()
        else:
            self._call.cancel()
            self._call.wait()


class ObjectWriter:
    """One object of an upload, written front to back from one thread.

    Attributes:
        target: where it goes.
    """

    def __init__(self, upload: BlockingUpload, outgoing: OutgoingObject, total_bytes: int | None) -> None:
        self.target = outgoing.target
        self._upload = upload
        self._outgoing = outgoing
        self._held: list[OutgoingPart] = []  # the first part, which is sent only once it is known whether more follow
        sizes = upload.part_sizes(total_bytes)
        self._assembler = PartAssembler(sizes, self._take, upload.reserve)
        self._has_parts = total_bytes is not None and total_bytes > sizes.at(1)
        if self._has_parts:
            upload.call_soon(outgoing.expect_parts)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._assembler.tell()

    def copy_in(self, *pieces: bytes | bytearray | memoryview) -> None:
        """Append copies of ``pieces``; may wait for staging memory."""
        self._assembler.copy_in(*pieces)

    def reserve(self, nbytes: int) -> None:
        """Wait until ``nbytes`` may be staged, to be handed over with ``refer_to(..., staged_bytes=nbytes)``."""
        self._upload.reserve(nbytes)

    def refer_to(
        self, view: memoryview, owner: object, *, staged_bytes: int = 0, blocks: BlockCrcs | None = None
    ) -> int:
        """Append memory without copying it; returns its CRC32, and adds those of its blocks to ``blocks``.

        It must not change, and ``owner`` is kept alive, until it has been sent, or the upload has ended.
        ``staged_bytes``: for how many ``reserve`` was called, if it is a copy.
        """
        return self._assembler.refer_to(view, owner, staged_bytes=staged_bytes, blocks=blocks)

    def close(self) -> None:
        """The object is complete; leaving the upload's block waits for it."""
        self._assembler.finish()
        self._submit_held()
        nbytes, crc32 = self._assembler.nbytes, self._assembler.crc32
        self._upload.call_soon(lambda: self._outgoing.seal(nbytes, crc32))

    def discard(self) -> None:
        """Give the object up: it will not appear."""
        self._upload.call_soon(self._outgoing.discard)

    def _take(self, part: OutgoingPart) -> None:
        self._held.append(part)
        if part.number > 1 or self._has_parts:
            self._submit_held()

    def _submit_held(self) -> None:
        parts, self._held = self._held, []
        for part in parts:
            self._upload.submit(self._outgoing, part)


class Staging:
    """What one upload has staged, within the engine's budget.

    A reservation waits only while parts of this upload are under way, for they will be sent and freed. Without them it
    is let through: whatever else the budget is spent on may be its own thread's to free, or parts that it has not
    filled yet. So an upload exceeds the budget by what it holds before its second part is full.
    """

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._held_bytes = 0
        self._in_flight_bytes = 0
        self._ended = False
        self._lock = threading.Lock()

    def reserve(self, nbytes: int) -> None:
        """On the producing thread: wait for room. Does nothing when the upload is over."""
        if not self._budget.reserve(nbytes, give_up=lambda: self._ended or not self._in_flight_bytes):
            self._budget.overdraw(nbytes)
        with self._lock:
            if not self._ended:
                self._held_bytes += nbytes
                return
        self._budget.release(nbytes)

    def submitted(self, part: OutgoingPart) -> None:
        """On the producing thread: a part is about to leave."""
        with self._lock:
            self._in_flight_bytes += part.staged_bytes

    def sent(self, part: OutgoingPart) -> None:
        """On the loop thread: a part has left, its staged bytes are free (as all are once the upload is over)."""
        with self._lock:
            if self._ended:
                return
            self._in_flight_bytes -= part.staged_bytes
            self._held_bytes -= part.staged_bytes
        self._budget.release(part.staged_bytes)

    def end(self) -> None:
        """The upload is over: free what it still holds, wake who waits. Idempotent."""
        with self._lock:
            held, self._held_bytes = self._held_bytes, 0
            self._ended = True
        self._budget.release(held)
