"""Snapshots: copies of state dicts that a save may read while training goes on, in memory that is kept for the next.

What ``dcp.async_save`` and ``save_in_background`` wait for before they let training go on. The proof of each large
tensor is taken as it is copied, while its bytes are in the caches and the training waits: taken later, beside it, block
by block, it takes more of its time than anything else. A save asks for it with ``proof_of``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple, cast

import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed._state_dict_utils import _create_cpu_state_dict
from torch.distributed.tensor import DTensor

from aiockpt.archive.torchsave import framable, plain, storage_view
from aiockpt.dcp.lent_memory import lend
from aiockpt.dcp.proof import KnownProof, ProofWriter
from aiockpt.model import KiB, MiB

#: Tensors below this lie where torch puts them, and a save takes their CRC32s: they are copied into its parts anyway.
LARGE_BYTES = 256 * KiB

#: Copied at once, on torch's threads, and then read again for its CRC32s, from the caches: 1.2 GB took 0.155 s with one
#: thread and 0.12 with two. With 256 KiB it was 0.16 and 0.155, tensors as a whole 0.18 and 0.13 (AMD EPYC).
_CHUNK_BYTES = 4 * MiB

#: Subclasses have ways of their own to be copied.
_ORDINARY = (torch.Tensor, torch.nn.Parameter)

#: What tensors are aligned to: a cache line.
_ALIGNMENT = 64


class _Taken(NamedTuple):
    """A proof of a tensor's memory, as it was at a version of torch's."""

    proof: ProofWriter
    nbytes: int
    version: int


#: By address. The memory is lent to a snapshot: nothing else lies there until it is given back, when these go.
_taken: dict[int, _Taken] = {}


@torch.no_grad()
def snapshot(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A copy of a state dict on the CPU, as ``BlockingAsyncStager`` makes it.

    The memory of large tensors, which cannot be resized, comes back when the last of them is gone.
    """
    copy = _create_cpu_state_dict(state_dict)  # tensors that nobody has written to: they take no memory yet
    pairs = list(_tensors(state_dict, copy))
    large = [target for _, target in pairs if _is_large(target)]
    placed = set(map(id, large)) if _place(large) else set()
    for source, target in pairs:
        if id(target) in placed and _is_at_hand(source):
            _copy_with_proof(source, target)
        else:
            target.copy_(source)
    return copy


def proof_of(tensor: torch.Tensor) -> KnownProof | None:
    """The proof of a snapshot's tensor, or of other elements that are all of its bytes; None if there is none.

    There is none either once an operation of torch has changed it in place. Who writes to it in other ways (``numpy``,
    ``data``, collectives) must not have it saved: the service would refuse it, since its CRC32 is another.
    """
    taken = _taken.get(tensor.data_ptr()) if _taken else None
    if taken is None or tensor.is_inference():  # those have no version
        return None
    if not tensor.is_contiguous() or not framable(tensor):  # elements of other bytes, or in another order
        return None
    is_as_it_was = (taken.nbytes, taken.version) == (tensor.nbytes, tensor._version)  # noqa: SLF001  # no public name
    return KnownProof(taken.proof) if is_as_it_was else None


def _tensors(source: Any, target: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """All tensors of a state dict, ranks' own shards of distributed ones, with those that are to be their copies."""
    if isinstance(source, ShardedTensor):
        for ours, theirs in zip(source.local_shards(), target.local_shards(), strict=True):
            yield ours.tensor, theirs.tensor
    elif isinstance(source, DTensor):
        yield source.to_local(), target.to_local()
    elif isinstance(source, torch.Tensor):
        yield source, target
    elif isinstance(source, dict):
        for key, value in source.items():
            yield from _tensors(value, target[key])
    elif isinstance(source, list | tuple):
        for ours, theirs in zip(source, target, strict=True):
            yield from _tensors(ours, theirs)


def _is_large(target: torch.Tensor) -> bool:
    is_strided = target.is_cpu and target.layout is torch.strided  # a default device would have it elsewhere
    return is_strided and target.nbytes >= LARGE_BYTES and plain(target)


def _place(tensors: Sequence[torch.Tensor]) -> bool:
    """Have tensors lie in memory that is kept, side by side; False: there is none, they stay where they are."""
    if not tensors:
        return False
    starts = list(accumulate((-(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT for tensor in tensors), initial=0))
    addresses: list[int] = []
    try:
        view = lend(starts[-1], partial(_forget, addresses))
    except OSError:
        return False
    for tensor, start in zip(tensors, starts, strict=False):
        room = torch.frombuffer(view, dtype=torch.uint8, offset=start, count=tensor.nbytes)
        tensor.set_(cast("Any", room.untyped_storage()), 0, tensor.shape, tensor.stride())
        addresses.append(tensor.data_ptr())
    return True


def _forget(addresses: Sequence[int]) -> None:
    for address in addresses:
        _taken.pop(address, None)


def _is_at_hand(source: torch.Tensor) -> bool:
    """Whether it is copied from host memory as it lies there."""
    return type(source) in _ORDINARY and source.is_cpu and source.is_contiguous()


def _copy_with_proof(source: torch.Tensor, target: torch.Tensor) -> None:
    proof = ProofWriter(target.nbytes, target.shape)
    chunk = _CHUNK_BYTES // target.itemsize
    for ours, theirs in zip(torch.split(source.view(-1), chunk), torch.split(target.view(-1), chunk), strict=True):
        theirs.copy_(ours)
        proof.add(storage_view(theirs))
    if not target.is_inference():  # those have no version
        _taken[target.data_ptr()] = _Taken(proof, target.nbytes, target._version)  # noqa: SLF001  # as in proof_of
