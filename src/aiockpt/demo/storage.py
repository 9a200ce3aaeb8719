"""The checkpoint's way to S3 and back: DCP over aiockpt's adapters, timed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from torch import distributed
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver

from aiockpt.blocking.store import Store
from aiockpt.config import S3ClientConfig
from aiockpt.dcp import S3StorageReader, S3StorageWriter
from aiockpt.demo.job import Place, Transfer
from aiockpt.model import ObjectId
from aiockpt.s3.control import ListedObject

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiockpt.demo.training import Training


def save(training: Training, place: Place) -> Transfer:
    """Write the checkpoint; every process of the run must call it."""
    writer = S3StorageWriter(place.region, place.uri, endpoint_url=place.endpoint_url)
    alone = not distributed.is_initialized()
    state = {"training": training}
    return _timed(lambda: state_dict_saver.save(state, storage_writer=writer, no_dist=alone), place)


def load(training: Training, place: Place) -> Transfer:
    """Read the checkpoint into `training`; every process of the run must call it."""
    reader = S3StorageReader(place.region, place.uri, endpoint_url=place.endpoint_url)
    alone = not distributed.is_initialized()
    state = {"training": training}
    return _timed(lambda: state_dict_loader.load(state, storage_reader=reader, no_dist=alone), place)


def _timed(move: Callable[[], object], place: Place) -> Transfer:
    begun = time.perf_counter()
    move()
    seconds = time.perf_counter() - begun
    sizes = _sizes(place)
    return Transfer(seconds, len(sizes), sum(sizes))


def _sizes(place: Place) -> list[int]:
    """Sizes in bytes of the checkpoint's objects."""
    store = Store(S3ClientConfig(endpoint_url=place.endpoint_url), place.region)
    rows = store.list_objects(ObjectId.parse(f"{place.uri}/"))
    return [row.size for row in rows if isinstance(row, ListedObject)]
