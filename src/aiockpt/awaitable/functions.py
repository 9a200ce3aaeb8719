"""``aiockpt.save``, ``load``, ``save_in_background`` and ``load_tensors``: an engine's calls, without one to keep."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.planner import LoadPlanner, SavePlanner
from torch.distributed.checkpoint.staging import AsyncStager

from aiockpt.awaitable.checkpoint_calls import OnProgress, StateDict
from aiockpt.awaitable.engine import URI, Engine
from aiockpt.awaitable.saving import BackgroundSave
from aiockpt.awaitable.tensors import AHEAD_BYTES, TensorStream
from aiockpt.config import S3ClientConfig
from aiockpt.observe.report import Report


async def save(
    state_dict: StateDict,
    uri: URI,
    *,
    planner: SavePlanner | None = None,
    process_group: dist.ProcessGroup | None = None,
    no_dist: bool = False,
    config: S3ClientConfig | None = None,
    region: str | None = None,
    on_progress: OnProgress | None = None,
    **options: Any,
) -> Report:
    """Save a checkpoint as ``dcp.save`` does, to the same objects.

    Nothing in ``state_dict`` may change until this returns: tensors are sent from their own memory. DCP plans in a
    thread of its own, so planners and stateful objects are called there.

    Args:
        state_dict: as ``dcp.save`` takes it.
        uri: ``s3://bucket/checkpoint``.
        planner: None: DCP's default.
        process_group: of the ranks that save together; None: the default one. Saves and loads on one group take turns
            in the order in which they are begun, which has to be the same on all ranks.
        no_dist: save this process's state alone.
        config: settings; None: the defaults.
        region: AWS region; None: botocore's choice.
        on_progress: called on this loop with a ``Progress``, several times a second and at the end.
        options: further arguments of ``S3StorageWriter`` (``thread_count``, ``overwrite``, ``endpoint_url`` …).

    Returns:
        what this rank did.

    Raises:
        ConfigError: ``uri`` is none of S3, or a setting cannot work.
        S3Exception: an object could not be written; whatever was begun has been aborted.
        CheckpointException: of several ranks, which failed at what.
        asyncio.CancelledError: it was cancelled. Uploads are aborted; what stood at ``uri`` before stands, unless the
            commit had been made. The other ranks are told, when they come to the next collective.
    """
    return await Engine(config, region).save(
        state_dict,
        uri,
        planner=planner,
        process_group=process_group,
        no_dist=no_dist,
        on_progress=on_progress,
        **options,
    )


def save_in_background(
    state_dict: StateDict,
    uri: URI,
    *,
    planner: SavePlanner | None = None,
    process_group: dist.ProcessGroup | None = None,
    no_dist: bool = False,
    copy: bool = True,
    stager: AsyncStager | None = None,
    config: S3ClientConfig | None = None,
    region: str | None = None,
    **options: Any,
) -> BackgroundSave:
    """Begin a save, and go on: from async code, or from a thread without a loop.

    Tensors may be changed once ``staged`` is done: ``await save.staged``, or ``save.staged.result()``. With several
    ranks, give it a process group that nothing else uses meanwhile: collectives of two threads must not mix.

    Args:
        state_dict, uri, planner, process_group, no_dist, config, region, options: see ``save``.
        copy: save copies, made first, in host memory, as ``dcp.async_save`` does; False: save from the tensors' own
            memory, so that ``staged`` is done when the save is.
        stager: makes the copies; None: as ``dcp.async_save`` would. One that is kept for all saves of a run reuses its
            memory, but only one save at a time can use it.

    Raises:
        ConfigError: ``uri`` is none of S3.
    """
    return Engine(config, region).save_in_background(
        state_dict,
        uri,
        planner=planner,
        process_group=process_group,
        no_dist=no_dist,
        copy=copy,
        stager=stager,
        **options,
    )


async def load(
    state_dict: StateDict,
    uri: URI,
    *,
    planner: LoadPlanner | None = None,
    process_group: dist.ProcessGroup | None = None,
    no_dist: bool = False,
    config: S3ClientConfig | None = None,
    region: str | None = None,
    on_progress: OnProgress | None = None,
    **options: Any,
) -> Report:
    """Load a checkpoint into ``state_dict`` as ``dcp.load`` does: tensors in place, bytes straight into their memory.

    Args:
        state_dict: what is wanted, and where it goes; not to be touched until this returns. After an error or a
            cancellation its contents are undefined; stateful objects are given theirs only once all has come.
        uri, planner, process_group, no_dist, config, region, on_progress: see ``save``.
        options: further arguments of ``S3StorageReader`` (``allowed_metadata_types``, ``endpoint_url`` …).

    Returns:
        what this rank did.

    Raises:
        ConfigError: ``uri`` is none of S3, or a setting cannot work.
        NotFound: there is no complete checkpoint.
        S3Exception, MetadataError, TargetMismatch: it cannot be read, or does not fit.
        CheckpointException: of several ranks, which failed at what.
        asyncio.CancelledError: it was cancelled; no tensor is written to any more.
    """
    return await Engine(config, region).load(
        state_dict,
        uri,
        planner=planner,
        process_group=process_group,
        no_dist=no_dist,
        on_progress=on_progress,
        **options,
    )


def load_tensors(
    uri: URI,
    *,
    names: Collection[str] | None = None,
    state_dict: StateDict | None = None,
    device: torch.device | str = "cpu",
    ahead_bytes: int = AHEAD_BYTES,
    config: S3ClientConfig | None = None,
    region: str | None = None,
    **options: Any,
) -> TensorStream:
    """Hand tensors over as they arrive: ``async for name, tensor in aiockpt.load_tensors(uri)``.

    Each is whole, whatever ranks have cut it into, and verified. Names are those of the checkpoint's metadata (nested
    dictionaries joined by dots); objects that are no tensors are left out. Every process loads for itself, without
    collectives. A loop that is left early should be closed: use ``async with``, or ``aclose``.

    Args:
        uri: ``s3://bucket/checkpoint``.
        names: of the tensors wanted; None: those of ``state_dict``, else all.
        state_dict: tensors to be filled, instead of new ones.
        device: of new tensors.
        ahead_bytes: how far the load may be ahead: it pauses while about so many bytes are on their way or wait to be
            taken. Beyond that it holds at most two tensors.
        config, region: see ``save``.
        options: further arguments of ``S3StorageReader``.

    Raises:
        ConfigError: ``uri`` is none of S3.
        MetadataError, NotFound, S3Exception, TargetMismatch: while iterating, as ``load``.
    """
    return Engine(config, region).load_tensors(
        uri, names=names, state_dict=state_dict, device=device, ahead_bytes=ahead_bytes, **options
    )
