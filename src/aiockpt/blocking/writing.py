"""Writing an object front to back from a thread, as a file object; it uploads while it is written."""

from __future__ import annotations

import io
import threading
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from aiockpt.blocking.store import Store
from aiockpt.model import ObjectId

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined]  # Python 3.12


class _GivenUp(Exception):  # no error: how an upload's block is left by those who abort it
    """The stream was aborted."""


class S3Writer(io.BufferedIOBase):
    """A write-only binary stream to one object.

    What is written is copied into staging memory, bounded by the engine's byte budget, and leaves in parts; ``write``
    waits when the network is slower than the writer. The object appears, whole, when the stream is closed; leaving a
    ``with`` block by an exception aborts it instead, and nothing appears. ``close`` may be called from any thread,
    ``write`` from one at a time.

    Raises:
        ValueError: ``target`` has no key: a bucket is no object.
        S3Exception: from ``write`` or ``close``, when the object cannot be written.
    """

    def __init__(self, store: Store, target: ObjectId) -> None:
        if not target.key:
            raise ValueError(f"An object needs a key, got {target.uri!r}")
        self._target = target
        self._lock = threading.RLock()
        self._exits = ExitStack()
        self._upload = self._exits.enter_context(store.upload())
        self._writer = self._upload.object(target)
        self._position = 0
        self._finished = False

    @property
    def bucket(self) -> str:
        """The bucket."""
        return self._target.bucket

    @property
    def key(self) -> str:
        """The object's key."""
        return self._target.key

    @property
    def closed(self) -> bool:
        """Whether the stream was closed or aborted."""
        return self._finished

    def writable(self) -> bool:
        """True."""
        return True

    def readable(self) -> bool:
        """False."""
        return False

    def seekable(self) -> bool:
        """False."""
        return False

    def tell(self) -> int:
        """Bytes written so far."""
        return self._position

    def write(self, data: Buffer) -> int:
        """Append ``data``; returns its length in bytes."""
        with self._lock:
            if self._finished:
                raise ValueError(f"write to closed stream of {self._target.uri}")
            items = memoryview(data)
            view = items.cast("B") if items.nbytes else memoryview(b"")  # no cast knows an empty shape
            self._writer.copy_in(view)
            self._position += len(view)
            return len(view)

    def flush(self) -> None:
        """Does nothing: parts leave as they fill, the object appears when it is closed."""

    def close(self) -> None:
        """Complete the object; waits until it stands. Idempotent."""
        with self._lock:
            if self._finished:
                return
            self._finished = True
            with self._exits:
                self._writer.close()

    def abort(self) -> None:
        """Give the object up; nothing of it appears. Raises nothing; idempotent, and without effect after ``close``."""
        with self._lock:
            if self._finished:
                return
            self._finished = True
            with suppress(_GivenUp), self._exits:
                raise _GivenUp

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is None:
            self.close()
        else:
            self.abort()

    def __del__(self) -> None:
        # unlike io's own: a stream that nobody closed was not finished, so its object must not appear
        if hasattr(self, "_writer"):
            self.abort()
