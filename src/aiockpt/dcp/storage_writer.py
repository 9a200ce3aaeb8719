"""``S3StorageWriter``: DCP's storage writer, sending tensors from their own memory."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from torch.distributed.checkpoint.filesystem import (
    CURRENT_DCP_VERSION,
    FileSystemWriter,
    SerializationFormat,
    _StorageInfo,
    _StoragePrefix,
)
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from aiockpt.blocking.store import Store
from aiockpt.bridge import Call
from aiockpt.config import S3ClientConfig
from aiockpt.dcp.background import background_store
from aiockpt.dcp.collector import allow_full_passes, put_off_full_passes
from aiockpt.dcp.commit import Survey, commit, lost, replaced_data, survey, withdraw
from aiockpt.dcp.file_system import S3FileSystem, object_at
from aiockpt.dcp.files import split
from aiockpt.dcp.metadata import dump_metadata
from aiockpt.dcp.numbering import likely_number, note_used
from aiockpt.dcp.peers import Fate, failing_together, shared_fates
from aiockpt.dcp.recording import Recording
from aiockpt.dcp.rounds import Rounds
from aiockpt.dcp.s3_prefix_strategy import DefaultPrefixStrategy, S3PrefixStrategyBase
from aiockpt.dcp.save import SavePipeline
from aiockpt.dcp.snapshot import snapshot
from aiockpt.engine.engine import LoopEngine
from aiockpt.errors import ConfigError, PreconditionFailed
from aiockpt.model import ObjectId
from aiockpt.observe.recorder import Recorder
from aiockpt.observe.report import Phase, Progress, Report

T = TypeVar("T")

_WRITER_SETTINGS = frozenset({
    "_extensions", "cache_staged_state_dict", "overwrite", "per_thread_copy_ahead", "serialization_format",
    "single_file_per_rank", "sync_files",
})  # fmt: skip


@dataclass
class _Share(_StoragePrefix):
    """What a rank's plan says of the storage: the names of its objects, and what it shares with the other ranks."""

    fate: Fate | None


class S3StorageWriter(FileSystemWriter):
    """Writes DCP checkpoints to S3, laid out as stock DCP lays them out. No network at construction; picklable.

    Args:
        region: AWS region.
        path: ``s3://bucket/checkpoint``.
        s3client_config: settings.
        prefix_strategy: names each rank's objects; None: ``__<rank>_<n>.distcp``.
        thread_count: into how many objects a rank's data is split (parts are always sent concurrently).
        kwargs: those of ``FileSystemWriter`` (``single_file_per_rank``, ``overwrite``, ``serialization_format`` …) and
            the fields of ``S3ClientConfig`` (``endpoint_url`` …).

    Raises:
        ConfigError: a setting that cannot work.
    """

    def __init__(
        self,
        region: str,
        path: str | os.PathLike[str],
        s3client_config: S3ClientConfig | None = None,
        prefix_strategy: S3PrefixStrategyBase | None = None,
        thread_count: int = 1,
        **kwargs: Any,
    ) -> None:
        if thread_count < 1:
            raise ConfigError(f"thread_count must be at least 1, got {thread_count}")
        writer_settings = {name: kwargs.pop(name) for name in _WRITER_SETTINGS & kwargs.keys()}
        super().__init__(path=path, **{"sync_files": False, "thread_count": thread_count, **writer_settings})
        self.fs = S3FileSystem(region, s3client_config=s3client_config, **kwargs)  # type: ignore[assignment]
        self.path = self.fs.init_path(path)
        self.prefix_strategy = prefix_strategy or DefaultPrefixStrategy()
        self._means_to_overwrite = writer_settings.get("overwrite", False)  # its default is True, too
        self._commits = False  # whether ``finish`` will be called here
        self._survey: Call[Survey] | None = None
        self._replaced: Call[frozenset[str]] | None = None
        self._recording = Recording("save")

    @property
    def report(self) -> Report | None:
        """What the last save did on this rank; None until one has succeeded. The coordinator's includes the commit."""
        return self._recording.report

    def progress(self) -> Progress | None:
        """How far the present save is, or the last one was, from any thread; None before the first."""
        return self._recording.progress()

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Turn to another save, at another path if one is given."""
        super().reset(checkpoint_id)
        self._survey = self._replaced = None

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The copy that ``dcp.async_save`` saves, in memory that is kept for the next one.

        With ``cache_staged_state_dict`` it is stock DCP's: in pinned memory, which the writer keeps.
        """
        return super().stage(state_dict) if self.cache_staged_state_dict else snapshot(state_dict)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Begin to look what stands at the path, while DCP plans."""
        super().set_up_storage_writer(is_coordinator, *args, **kwargs)
        self._commits = is_coordinator or not self.use_collectives
        self._recording.begin(self._base.uri, self.rank)
        self._survey = self._start_survey(self.prefix_strategy(self.rank or 0))
        put_off_full_passes()

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As stock DCP; with rank-local metadata the prefix strategy names the objects here.

        Raises:
            RuntimeError: there is a checkpoint already and ``overwrite`` is False.
        """
        if not self.overwrite and self._found().exists:
            raise RuntimeError(f"Checkpoint already exists at {self.path} and {self.overwrite=}.")
        if self.rank is not None and not self.use_collectives:
            plan = self._with_prefix(plan, self.rank)
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Have the prefix strategy name each rank's objects, and give the ranks a fate to share."""
        return [
            plan if plan.storage_data is not None else self._with_prefix(plan, rank, fate)
            for rank, (plan, fate) in enumerate(zip(plans, shared_fates(len(plans)), strict=True))
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's objects; the future that is returned is done.

        Raises:
            S3Exception: an object could not be written; whatever was begun has been aborted.
            PreconditionFailed: another writer has committed at this path meanwhile; what was written has been deleted.
            RankFailed: another rank could not write its own.
        """
        share = cast("_StoragePrefix", plan.storage_data)
        fate = share.fate if isinstance(share, _Share) else None
        with failing_together(fate):
            allow_full_passes()
            results = self._write(plan, planner, share.prefix, alone=fate is None)
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def _write(self, plan: SavePlan, planner: SavePlanner, prefix: str, *, alone: bool) -> list[WriteResult]:
        buckets = split(plan.items, self.thread_count) if self.single_file_per_rank else [[item] for item in plan.items]
        files = list(self._writable_files(buckets))
        recorder = self._recording.current(self._base.uri)
        pipeline = SavePipeline(self._store, self._base, planner, self.transforms, self.serialization_format, recorder)
        with recorder.working(), recorder.phase(Phase.TRANSFER):
            results = self._write_beside(pipeline, prefix, files, alone=alone)
        if not self._commits:
            self._recording.finish()
        return results

    def _write_beside(
        self, pipeline: SavePipeline, prefix: str, files: Sequence[Sequence[WriteItem]], *, alone: bool
    ) -> list[WriteResult]:
        """Write files beside what stands at the path and what others write there.

        Who is ``alone`` ends when another writer has committed. A rank among others goes on, since none but the commit
        knows what all of them have written, to take it away again.
        """
        rounds = Rounds(self._base, prefix)
        written = pipeline.write(
            rounds.named(files, self._likely_number(prefix)), lambda: rounds.first(files, self._free_number(prefix))
        )
        results = list(written.results)
        try:
            while written.taken:
                written = pipeline.write(rounds.again(written.taken, self._look_again(prefix, alone=alone)))
                results += written.results
        except PreconditionFailed:
            self._withdraw(result.storage_data for result in results)
            raise
        note_used(self._base / prefix, rounds.next_number)
        return results

    def _likely_number(self, prefix: str) -> int:
        """What ``_free_number`` will probably return, without waiting for it."""
        if self._survey is not None and self._survey.done:
            return self._found(prefix).next_number
        return likely_number(self._base / prefix)

    def _free_number(self, prefix: str) -> int:
        """Wait for the survey, and have what it found looked into; returns the first number that no name has used."""
        found = self._found(prefix)
        if found.exists:
            self._begin_replacing(found)
        return found.next_number

    def _look_again(self, prefix: str, *, alone: bool) -> int:
        """The first number that is free by now.

        Raises:
            PreconditionFailed: another writer has committed, which ends who is ``alone``.
        """
        now = self._start_survey(prefix).result()
        if alone and self._found().lost_to(now):
            raise lost(self._metadata_object)
        return now.next_number

    def _withdraw(self, places: Iterable[_StorageInfo]) -> None:
        keys, target = self._keys(places), self._metadata_object
        self._store.run(lambda engine: withdraw(engine, target, keys))

    def _begin_replacing(self, found: Survey) -> None:
        """Say that a checkpoint will be replaced; find out which data it has while the new ones are written."""
        if not self._means_to_overwrite:
            warnings.warn(
                f"{self.path} holds a checkpoint already, which this save replaces when it commits. Pass "
                "overwrite=False to have this refused, overwrite=True to say that it is meant.",
                stacklevel=2,
            )
        if self._commits:
            target = self._metadata_object
            self._replaced = self._start(lambda engine: replaced_data(engine, found, target))

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit: write ``.metadata``, in one request, after all data.

        Raises:
            PreconditionFailed: another writer has committed at this path meanwhile; all data of this save have been
                deleted.
            NotFound: a sweep has removed data of this save, which took long; what stood stands.
        """
        metadata.version = CURRENT_DCP_VERSION
        metadata.storage_data = {result.index: result.storage_data for rank in results for result in rank}
        metadata.storage_meta = self.storage_meta()
        recorder = self._recording.current(self._base.uri)
        with recorder.working(), recorder.phase(Phase.COMMIT):
            self._commit(metadata, recorder)
        self._recording.finish()
        self._survey = self._replaced = None

    def _commit(self, metadata: Metadata, recorder: Recorder) -> None:
        data = dump_metadata(metadata)
        recorder.add(len(data))
        kept = self._keys(metadata.storage_data.values())
        replaced = self._replaced.result() if self._replaced is not None else frozenset()
        found, target = self._found(), self._metadata_object
        self._store.run(lambda engine: commit(engine, found, target, data, kept, replaced))

    def _keys(self, places: Iterable[_StorageInfo]) -> set[str]:
        """Keys of the objects that these places are in."""
        return {(self._base / path).key for path in {place.relative_path for place in places}}

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether checkpoints can be written there: an S3 URI, or a path object."""
        return S3FileSystem.validate_checkpoint_id(checkpoint_id)

    @property
    def _store(self) -> Store:
        """What this thread works with: in the background it is one that gives way to others."""
        return background_store(cast("S3FileSystem", self.fs).store)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_survey": None, "_replaced": None}

    @property
    def _metadata_object(self) -> ObjectId:
        rank = self.rank if not self.use_collectives else None
        return ObjectId.parse(os.fspath(self._get_metadata_path(rank)))

    def _start_survey(self, prefix: str) -> Call[Survey]:
        metadata, data = self._metadata_object, self._base / prefix
        return self._start(lambda engine: survey(engine, metadata, data))

    def _start(self, work: Callable[[LoopEngine], Coroutine[Any, Any, T]]) -> Call[T]:
        """Begin something beside what this thread does, and count its requests."""
        with self._recording.current(self._base.uri).working():
            return self._store.start(work)

    def _found(self, prefix: str | None = None) -> Survey:
        """What the survey found; made now if none is under way, or if it was for another prefix."""
        if self._survey is None:
            self._survey = self._start_survey(prefix or self.prefix_strategy(self.rank or 0))
        found = self._survey.result()
        if prefix is not None and found.prefix != self._base / prefix:
            self._survey = self._start_survey(prefix)
            found = self._survey.result()
        return found

    @property
    def _base(self) -> ObjectId:
        return object_at(self.path)

    def _with_prefix(self, plan: SavePlan, rank: int, fate: Fate | None = None) -> SavePlan:
        return dataclasses.replace(plan, storage_data=_Share(self.prefix_strategy(rank), fate))

    def _writable_files(self, buckets: Sequence[list[WriteItem]]) -> Iterator[list[WriteItem]]:
        """The items of files that have any.

        A safetensors file holds a name once: further chunks of a tensor get files of their own.
        """
        if self.serialization_format is not SerializationFormat.SAFETENSORS:
            yield from filter(None, buckets)
            return
        for bucket in buckets:
            rounds: list[dict[str, WriteItem]] = [{}]
            for item in bucket:
                name = item.index.fqn
                place = next((held for held in rounds if name not in held), None)
                if place is None:
                    rounds.append(place := {})
                place[name] = item
            yield from (list(held.values()) for held in rounds)
