"""Objects at rest, in a folder: a sub-folder for each bucket, a file for each object, read through maps.

Files may be put there or changed by others while the endpoint runs: a file is looked at again when its size
or time has changed. What S3 knows beyond the bytes (user metadata, checksums, an ETag with a number of parts)
is kept in memory only, for as long as the file stays as it is.

Keys are the files' relative paths. What a path cannot say is percent-encoded: empty segments, ``.``, ``..``,
and ``%`` itself. ``a`` and ``a/b`` cannot both be objects. Files are written on the event loop, which waits
for the disk.
"""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path
from urllib.parse import unquote

from aiockpt.testing.answers import Refusal
from aiockpt.testing.content import EMPTY, Content, crc32
from aiockpt.testing.store import StoredObject, etag_of

#: Names of files that are being written start with this, and are no objects: a ``%`` that encodes nothing.
_TEMPORARY = "%tmp-"

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

#: A file's state: its size, its modification time in nanoseconds, and its inode.
_Mark = tuple[int, int, int]


class FolderStore:
    """See the module. Implements ``Store``.

    Args:
        folder: holds the buckets; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[Path, tuple[_Mark, StoredObject]] = {}
        self._written = 0
        folder.mkdir(parents=True, exist_ok=True)

    def _bucket(self, bucket: str) -> Path:
        path = self._folder / bucket
        if not _BUCKET.fullmatch(bucket) or not path.is_dir():
            raise Refusal("NoSuchBucket")
        return path

    def _file(self, bucket: str, key: str) -> Path:
        return self._bucket(bucket).joinpath(*map(_encode, key.split("/")))

    def buckets(self) -> list[str]:
        """See ``Store``."""
        return sorted(path.name for path in self._folder.iterdir() if path.is_dir() and _BUCKET.fullmatch(path.name))

    def create_bucket(self, bucket: str) -> None:
        """See ``Store``."""
        if not _BUCKET.fullmatch(bucket):
            raise Refusal("InvalidArgument", "The bucket's name is not a plain file name.")
        (self._folder / bucket).mkdir(exist_ok=True)

    def delete_bucket(self, bucket: str) -> None:
        """See ``Store``."""
        for folder, _, _ in os.walk(self._bucket(bucket), topdown=False):
            Path(folder).rmdir()

    def keys(self, bucket: str) -> list[str]:
        """See ``Store``."""
        top = self._bucket(bucket)
        files = (Path(folder, name) for folder, _, names in os.walk(top) for name in names)
        keys = ["/".join(map(_decode, file.relative_to(top).parts)) for file in files if _is_object(file)]
        return sorted(keys, key=str.encode)

    def get(self, bucket: str, key: str) -> StoredObject | None:
        """See ``Store``. A file not seen before is read once, for its CRC32."""
        path = self._file(bucket, key)
        mark = _mark(path)
        if mark is None:
            self._known.pop(path, None)
            return None
        known = self._known.get(path)
        if known is not None and known[0] == mark:
            return known[1]
        content = _mapped(path)
        stored = StoredObject(content, etag_of(content), modified=mark[1] / 1e9)
        self._known[path] = mark, stored
        return stored

    def put(self, bucket: str, key: str, stored: StoredObject) -> None:
        """See ``Store``. The file appears whole, by a rename."""
        path = self._file(bucket, key)
        self._written += 1
        temporary = self._bucket(bucket) / f"{_TEMPORARY}{os.getpid()}-{self._written}"
        try:
            with temporary.open("wb") as file:
                file.writelines(stored.content.pieces)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(path)
        except OSError as exc:
            temporary.unlink(missing_ok=True)
            raise Refusal("InvalidRequest", f"The key cannot be a file here: {exc.strerror}.") from exc
        mark = _mark(path)
        assert mark is not None
        content = _mapped(path, stored.content.crc32)
        self._known[path] = (
            mark,
            StoredObject(content, stored.etag, stored.headers, stored.checksums, stored.checksum_type, stored.modified),
        )

    def delete(self, bucket: str, key: str) -> None:
        """See ``Store``. Folders that this leaves empty stay."""
        path = self._file(bucket, key)
        self._known.pop(path, None)
        if _mark(path) is not None:
            path.unlink()

    def flip_bit(self, bucket: str, key: str, at_byte: int) -> None:
        """See ``Store``. The file keeps its times; answers that are on their way see the change."""
        self.get(bucket, key)
        path = self._file(bucket, key)
        before = path.stat()
        with path.open("r+b") as file:
            file.seek(at_byte)
            byte = file.read(1)
            file.seek(at_byte)
            file.write(bytes([byte[0] ^ 1]))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _encode(segment: str) -> str:
    if segment in {"", ".", ".."}:
        return "%" + "".join(f"{ord(char):02X}" for char in segment[:1]) + segment[1:]
    return segment.replace("%", "%25").replace("\0", "%00")


def _decode(name: str) -> str:
    return "" if name == "%" else unquote(name)


def _is_object(file: Path) -> bool:
    return not file.name.startswith(_TEMPORARY)


def _mark(path: Path) -> _Mark | None:
    """The state of the regular file at ``path``, None if there is none."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return (status.st_size, status.st_mtime_ns, status.st_ino) if path.is_file() else None


def _mapped(path: Path, checksum: int | None = None) -> Content:
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return EMPTY
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return Content((view,), len(view), crc32([view]) if checksum is None else checksum)
