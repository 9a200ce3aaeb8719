"""The engine: S3 as awaitable operations, with retries, bounded concurrency and zero-copy bulk transfers.

It composes ``plan`` (decisions), ``s3`` and ``transport`` (I/O). Per-loop: enter it on the loop that will use it; the
blocking world reaches it through the bridge. An engine is used by any number of tasks at once.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Self

import anyio

from aiockpt.config import S3ClientConfig
from aiockpt.crc import crc32
from aiockpt.engine.attempts import Attempts
from aiockpt.engine.budget import ByteBudget
from aiockpt.engine.download import Download, DownloadStats, Job, Read
from aiockpt.engine.rename import Renaming
from aiockpt.engine.upload import OutgoingPart, Upload
from aiockpt.errors import NotFound
from aiockpt.model import ByteRange, MiB, ObjectId, ObjectInfo
from aiockpt.plan.concurrency import ConcurrencyController
from aiockpt.plan.parts import cut
from aiockpt.plan.request_size import request_bytes
from aiockpt.plan.retry import Backoff, Operation, RetryPolicy
from aiockpt.s3.bulk import Payload
from aiockpt.s3.client import S3Client
from aiockpt.s3.control import ListedObject, PendingUpload

#: Connections to begin with, per direction. 4 to 16 serve a fast local link equally well, and on an S3-like link
#: (about 90 MB/s a connection) 16 are a good step towards 10 Gbit/s; the controller moves on from there.
START_CONNECTIONS = 16
