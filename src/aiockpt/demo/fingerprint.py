"""Fingerprints of a state dict: equal if and only if every name, type, shape and bit is.

A fingerprint is a few bytes whatever a tensor weighs, so that states of different processes can be compared without
holding either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from aiockpt.archive.torchsave import storage_view


def fingerprints(state: Mapping[str, Any]) -> dict[str, str]:
    """One fingerprint for each leaf of nested mappings, lists and tuples, by dotted name."""
    return {name: _fingerprint(value) for name, value in _leaves("", state)}


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    children: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping):
        children = value.items()
    elif isinstance(value, list | tuple):
        children = enumerate(value)
    else:
        yield name, value
        return
    for key, child in children:
        yield from _leaves(f"{name}.{key}" if name else str(key), child)


def _fingerprint(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return value.hex() if isinstance(value, float) else repr(value)
    tensor = value.detach().contiguous()
    digest = hashlib.sha256(storage_view(tensor)).hexdigest()
    return f"{tensor.dtype} {tuple(tensor.shape)} {digest}"
