"""``S3StorageReader``: DCP's storage reader, landing bytes in the tensors' own memory."""

from __future__ import annotations

import dataclasses
import logging
import os
import random
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NoReturn, cast

from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.futures import Future

from aiockpt.config import S3ClientConfig
from aiockpt.dcp.collector import allow_full_passes, put_off_full_passes
from aiockpt.dcp.file_system import S3FileSystem, object_at
from aiockpt.dcp.items import Catalogue, StoredItem, no_place_for
from aiockpt.dcp.load import WINDOW_BYTES, LoadPipeline
from aiockpt.dcp.metadata import load_metadata
from aiockpt.dcp.peers import failing_together, shared_fates
from aiockpt.dcp.recording import Recording
from aiockpt.dcp.tasks import Loading
from aiockpt.errors import AiockptError, MetadataError, NotFound
from aiockpt.model import ObjectId
from aiockpt.observe.recorder import Recorder
from aiockpt.observe.report import Phase, Progress, Report
from aiockpt.s3reader.constructor import DCPOptimizedConstructor, S3ReaderConstructor
from aiockpt.s3reader.protocol import DCPS3ReaderConstructorProtocol, S3ReaderConstructorProtocol

logger = logging.getLogger("aiockpt")

#: The system's, which has no state that forked processes would share.
_RANDOM = random.SystemRandom()


class UnreadableMetadata(Metadata):
    """Stands for metadata that could not be read: any use of it raises the reason."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getattr__(self, name: str) -> NoReturn:
        # called for what __init__ did not set: all that metadata has
        raise self.error


class S3StorageReader(FileSystemReader):
    """Reads DCP checkpoints from S3, whoever wrote them. No network at construction; picklable.

    With the default reader constructor, bytes go from the socket into the tensors. Any other constructor makes loads
    go through its readers, item by item, as stock DCP does.

    Args:
        region: AWS region.
        path: ``s3://bucket/checkpoint``.
        s3client_config: settings.
        reader_constructor: None: ``S3ReaderConstructor.dcp_optimized()``.
        allowed_metadata_types: types, beyond DCP's own, that the checkpoint's metadata may hold.
        settings: fields of ``S3ClientConfig``, by name (``endpoint_url`` …).
    """

    def __init__(
        self,
        region: str,
        path: str | os.PathLike[str],
        s3client_config: S3ClientConfig | None = None,
        reader_constructor: S3ReaderConstructorProtocol | DCPS3ReaderConstructorProtocol | None = None,
        *,
        allowed_metadata_types: Iterable[type] = (),
        **settings: Any,
    ) -> None:
        super().__init__(path)
        self._reader_constructor = reader_constructor or S3ReaderConstructor.dcp_optimized()
        self.fs = S3FileSystem(  # type: ignore[assignment]
            region, s3client_config=s3client_config, reader_constructor=self._reader_constructor, **settings
        )
        self.path = self.fs.init_path(path)
        self.sync_files = False
        self._allowed_metadata_types = tuple(allowed_metadata_types)
        self._window_bytes = WINDOW_BYTES
        self._metadata: Metadata | None = None
        self._global_error: Exception | None = None
        self._said_unproven_of: object = None
        self._recording = Recording("load")

    @property
    def report(self) -> Report | None:
        """What the last load did; None until one has succeeded."""
        return self._recording.report

    def progress(self) -> Progress | None:
        """How far the present load is, or the last one was, from any thread; None before the first."""
        return self._recording.progress()

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ARG002  # DCP's signature
        """The checkpoint's metadata, or with ``rank=`` that of a rank.

        DCP's load swallows what this raises, tries the rank's own metadata instead, and in the end reports neither
        error by its type. So in that second try the error is returned in the place of metadata, to be raised at their
        first use, from where DCP carries it to all ranks.

        Raises:
            NotFound: there is no complete checkpoint here.
            MetadataError: it is damaged, or refused because loading it could run code.
        """
        rank = kwargs.get("rank")
        before, self._global_error = self._global_error, None
        if rank is not None and before is not None and not isinstance(before, NotFound):
            return UnreadableMetadata(before)  # that had its retries: they need not be waited for twice
        try:
            return self._read_metadata(rank)
        except (AiockptError, ValueError) as error:  # ValueError: no s3:// URI
            if rank is not None:
                return UnreadableMetadata(before or error)
            self._global_error = error
            raise

    def _read_metadata(self, rank: int | None) -> Metadata:
        target = ObjectId.parse(os.fspath(self._get_metadata_path(rank)))
        recorder = self._recording.begin(self._base.uri, rank)
        data = self._get_metadata(target, recorder)
        recorder.add(len(data))
        try:
            metadata = load_metadata(data, target.uri, self._allowed_metadata_types)
        except MetadataError:  # damaged on the way, or at rest: a second try tells
            data = self._get_metadata(target, recorder)
            metadata = load_metadata(data, target.uri, self._allowed_metadata_types)
        assert metadata.storage_meta is not None
        metadata.storage_meta.load_id = self.load_id
        return metadata

    def _get_metadata(self, target: ObjectId, recorder: Recorder) -> bytes:
        try:
            with recorder.working():
                return self._fs.store.get_small(target)
        except NotFound as error:
            if error.code == "NoSuchKey":
                error.args = (f"{error.args[0]}; there is no complete checkpoint at {self.path}",)
            raise

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Remember what the load reads from; raises what ``read_metadata`` could not."""
        if isinstance(metadata, UnreadableMetadata):
            raise metadata.error
        super().set_up_storage_reader(metadata, is_coordinator, *args, **kwargs)
        self._metadata = metadata
        self._recording.current(self._base.uri).rank = kwargs.get("rank") or 0
        put_off_full_passes()

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Sort the items by place, and tell the reader constructor their ranges if it wants to know.

        Raises:
            MetadataError: the metadata has no place for an item.
        """
        try:
            plan.items.sort(key=lambda item: self.storage_data[item.storage_index].offset)
        except KeyError as error:
            raise no_place_for(error.args[0], self._base) from error
        if isinstance(self._reader_constructor, DCPS3ReaderConstructorProtocol):
            self._reader_constructor.set_item_ranges_by_file(plan.items, self.storage_data, self.path)
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Give the ranks a fate to share."""
        return [
            dataclasses.replace(plan, storage_data=fate)
            for plan, fate in zip(plans, shared_fates(len(plans)), strict=True)
        ]

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Load the plan's items; the future that is returned is done.

        Raises:
            S3Exception, MetadataError, TargetMismatch: see ``load.LoadPipeline``.
            RankFailed: another rank could not read its own items.
        """
        recorder = self._recording.current(self._base.uri)
        with recorder.working(), recorder.phase(Phase.TRANSFER), failing_together(plan.storage_data):
            allow_full_passes()
            self._read(plan, planner, recorder)
        self._recording.finish()
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _read(self, plan: LoadPlan, planner: LoadPlanner, recorder: Recorder) -> None:
        catalogue = Catalogue(self._base, self._metadata, self.storage_data)
        wanted_bytes = catalogue.wanted_nbytes(plan.items)
        constructor = self._reader_constructor
        if not isinstance(constructor, DCPOptimizedConstructor):
            recorder.expect(wanted_bytes, recorder.received_bytes)
            super().read_data(plan, planner)
            return
        store = self._fs.store
        loading = Loading(
            planner,
            self.transforms,
            store.config.checksum == "crc32",
            cache(lambda source: store.head(source).size),
            recorder,
        )
        with store.download(constructor.max_gap_size) as download:
            stats = download.stats
            recorder.expect(wanted_bytes, lambda: stats.wanted_bytes)
            LoadPipeline(download, loading, self._window_bytes).run(
                self._arranged(catalogue.items(plan.items, self._turn()))
            )
        self._say_unproven(loading.unproven)

    def _say_unproven(self, items: Sequence[StoredItem]) -> None:
        """Once per checkpoint: what could only be checked for its place and form, not for its bytes."""
        if items and self._said_unproven_of != self.path:
            self._said_unproven_of = self.path
            logger.info(
                "%s: the bytes of %d items were not checked, as whoever saved them noted no CRC32s of them (first: %s)",
                self.path,
                len(items),
                items[0],
            )

    def _turn(self) -> float:
        """With which object to begin: each process and load with another one.

        Ranks that load the same objects begin at the same moment, and would go from object to object, and from key
        prefix to key prefix, in step. It costs no request: objects are read as they lie, and nobody waits for one
        before all are there.
        """
        return _RANDOM.random()

    def _arranged(self, items: Iterable[StoredItem]) -> Iterable[StoredItem]:
        """The order in which items are fetched: as they lie, for the fewest requests."""
        return items

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether checkpoints can be read there: an S3 URI, or a path object."""
        return S3FileSystem.validate_checkpoint_id(checkpoint_id)

    @property
    def _fs(self) -> S3FileSystem:
        return cast("S3FileSystem", self.fs)

    @property
    def _base(self) -> ObjectId:
        return object_at(self.path)
