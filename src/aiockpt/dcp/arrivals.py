"""Arrivals: a load that hands each tensor over as soon as all of it has landed and been proved.

Tensors are allocated when their first bytes are asked for, and forgotten here when they are handed over, so a load of
any size needs memory only for what is under way. To that end tensors are fetched one after the other, all chunks of
one before those of the next, however a checkpoint's ranks have cut them up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.planner_helpers import _create_read_items
from torch.distributed.checkpoint.utils import find_tensor_shard

from aiockpt.dcp.items import StoredItem
from aiockpt.dcp.storage_reader import S3StorageReader
from aiockpt.errors import MetadataError, TargetMismatch

Deliver = Callable[[str, torch.Tensor], None]


class ArrivalsReader(S3StorageReader):
    """A storage reader that fetches tensor by tensor, not further ahead than ``window_bytes``."""

    def __init__(self, *args: Any, window_bytes: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._window_bytes = window_bytes

    def _turn(self) -> float:
        return 0.0  # in the order in which they were saved: somebody waits for the first ones

    def _arranged(self, items: Iterable[StoredItem]) -> Iterable[StoredItem]:
        first_seen: dict[str, int] = {}
        return sorted(items, key=lambda item: first_seen.setdefault(item.read.storage_index.fqn, len(first_seen)))


class ArrivalsPlanner(LoadPlanner):
    """Plans to load tensors by name, and hands them over.

    Args:
        deliver: takes each tensor with its name, on the thread that called DCP; it may block, to slow the load down.
        names: of the tensors wanted, as the metadata spell them; None: all. Objects that are no tensors are left out.
        targets: tensors to be filled instead of new ones, by name; they may be sharded, and say what is wanted.
        device: of new tensors.
    """

    def __init__(
        self,
        deliver: Deliver,
        *,
        names: Collection[str] | None,
        targets: Mapping[str, torch.Tensor],
        device: torch.device | str,
    ) -> None:
        self._deliver = deliver
        self._names = names
        self._targets = dict(targets)
        self._device = device
        self._stored: dict[str, TensorStorageMetadata] = {}
        self._missing: Counter[str] = Counter()

    def set_up_planner(
        self,
        state_dict: dict[str, Any],  # noqa: ARG002  # DCP's signature; tensors go to ``deliver``
        metadata: Metadata | None = None,
        is_coordinator: bool = False,  # noqa: ARG002
    ) -> None:
        """Choose what to load.

        Raises:
            MetadataError: the checkpoint has no tensor of a name that was asked for.
        """
        assert metadata is not None
        stored = metadata.state_dict_metadata
        tensors = {name: entry for name, entry in stored.items() if isinstance(entry, TensorStorageMetadata)}
        wanted = list(tensors if self._names is None else dict.fromkeys(self._names))
        if unknown := [name for name in wanted if name not in tensors]:
            what = "is no tensor" if unknown[0] in stored else "is not in the checkpoint"
            raise MetadataError(f"{unknown[0]!r} {what}: its tensors are named {', '.join(list(tensors)[:5])} …")
        self._stored = {name: tensors[name] for name in wanted}

    def create_local_plan(self) -> LoadPlan:
        """Reads for every chunk of every tensor wanted.

        Raises:
            TargetMismatch: a target has another shape than what is stored.
        """
        items: list[ReadItem] = []
        for name, entry in self._stored.items():
            reads = _create_read_items(name, entry, self._shaped(name, entry))
            self._missing[name] = len(reads)
            items += reads
        return LoadPlan(items)

    def _shaped(self, name: str, entry: TensorStorageMetadata) -> torch.Tensor:
        """Something of the target's shape and sharding."""
        target = self._targets.get(name)
        if target is None:
            return torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        if target.size() != entry.size:
            raise TargetMismatch(f"{name!r}: {tuple(entry.size)} is stored for a target of {tuple(target.size())}")
        return target

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        """As they are: each process loads for itself."""
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        """Hand over what has no bytes to wait for."""
        for name in [name for name, missing in self._missing.items() if not missing]:
            self._hand_over(name)
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: Any) -> None:
        """Never called: only tensors are planned."""
        raise NotImplementedError

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        """Where a chunk goes: a part of its tensor, which is allocated for its first chunk."""
        shard = find_tensor_shard(self._tensor(read_item.dest_index.fqn), read_item.dest_index)
        return narrow_tensor_by_index(shard, read_item.dest_offsets, read_item.lengths)

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:  # noqa: ARG002  # DCP's signature
        """A chunk is there, and proved; after the last, the tensor is."""
        name = read_item.dest_index.fqn
        self._missing[name] -= 1
        if not self._missing[name]:
            self._hand_over(name)

    def _tensor(self, name: str) -> torch.Tensor:
        if name not in self._targets:
            entry = self._stored[name]
            self._targets[name] = torch.empty(entry.size, dtype=entry.properties.dtype, device=self._device)
        return self._targets[name]

    def _hand_over(self, name: str) -> None:
        tensor = self._tensor(name)
        del self._targets[name], self._missing[name]
        self._deliver(name, tensor)
