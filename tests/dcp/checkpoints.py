"""What the tests of checkpoints share: a place for them in a bucket, and tensors to put there."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from botocore.config import Config
from torch.distributed.checkpoint.api import CheckpointException

from aiockpt.dcp import S3FileSystem, S3StorageReader, S3StorageWriter
from aiockpt.model import ObjectId
from servers.base import S3Server, _session

StateDict = dict[str, Any]


@dataclass
class Place:
    """A bucket of a server, with checkpoints in it by name."""

    server: S3Server
    bucket: str

    def uri(self, name: str = "") -> str:
        return ObjectId(self.bucket, name).uri

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments of readers, writers and file systems that lead here."""
        trust = {"ca_bundle": str(self.server.ca_bundle)} if self.server.ca_bundle else {}
        return {"endpoint_url": self.server.endpoint_url, **trust}

    def reader(self, name: str = "ckpt", **kwargs: Any) -> S3StorageReader:
        return S3StorageReader(self.server.region, self.uri(name), **self.settings | kwargs)

    def writer(self, name: str = "ckpt", **kwargs: Any) -> S3StorageWriter:
        return S3StorageWriter(self.server.region, self.uri(name), **self.settings | kwargs)

    def fs(self, **kwargs: Any) -> S3FileSystem:
        return S3FileSystem(self.server.region, **self.settings | kwargs)

    def save(self, state: StateDict, name: str = "ckpt", planner: Any = None, **kwargs: Any) -> None:
        save(state, self.writer(name, **kwargs), planner=planner)

    def load(self, state: StateDict, name: str = "ckpt", planner: Any = None, **kwargs: Any) -> StateDict:
        """Fill ``state``; returns it."""
        return load(state, self.reader(name, **kwargs), planner=planner)

    @cached_property
    def client(self) -> Any:
        """A client that shares nothing with ours."""
        config = Config(s3={"addressing_style": "path"})
        return _session().create_client(**self.server.client_arguments(), config=config)

    def keys(self, prefix: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return sorted(row["Key"] for page in pages for row in page.get("Contents", ()))

    def get(self, key: str) -> bytes:
        with closing(self.client.get_object(Bucket=self.bucket, Key=key)["Body"]) as body:
            data: bytes = body.read()
            return data

    def uploads(self) -> list[str]:
        """Keys of the multipart uploads that were neither completed nor aborted."""
        return [row["Key"] for row in self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", ())]

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data)

    def sync_down(self, name: str, folder: Path) -> Path:
        """The objects below ``name`` as files; returns their folder."""
        for key in self.keys(f"{name}/"):
            path = folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.get(key))
        return folder / name

    def sync_up(self, folder: Path, name: str) -> None:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def save(state: StateDict, writer: Any, planner: Any = None) -> None:
    """``dcp.save`` in a single process, which DCP warns about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, storage_writer=writer, planner=planner)


def load(state: StateDict, reader: Any, planner: Any = None) -> StateDict:
    """``dcp.load`` in a single process; returns ``state``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(state, storage_reader=reader, planner=planner)
    return state


def failure(error: CheckpointException) -> BaseException:
    """The one failure that DCP gathered."""
    (only,) = (wrapped[0] for wrapped in error.failures.values())
    assert isinstance(only, BaseException)
    return only


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Arbitrary bit patterns, of any dtype; bools are 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    raw = torch.randint(0, 256, (*shape, dtype.itemsize), generator=generator, dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


def raw_bytes(tensor: torch.Tensor) -> bytes:
    """The elements in row-major order, bit for bit."""
    plain = tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format).reshape(-1)
    return plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b""


def same_bits(left: Any, right: Any) -> bool:
    """Equal in structure, and bit for bit in every tensor: NaNs equal themselves."""
    if isinstance(left, torch.Tensor):
        return (left.dtype, left.shape) == (right.dtype, right.shape) and raw_bytes(left) == raw_bytes(right)
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(same_bits(value, right[key]) for key, value in left.items())
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same_bits, left, right))
    return bool(left == right)


def emptied(state: Any) -> Any:
    """The same structure, with tensors of zeros and other values None: what a load has to fill."""
    if isinstance(state, torch.Tensor):
        return torch.zeros(state.nbytes, dtype=torch.uint8).view(state.dtype).reshape(state.shape)
    if isinstance(state, dict):
        return {key: emptied(value) for key, value in state.items()}
    return None


def tensors_of(state: Any) -> Iterator[torch.Tensor]:
    """All tensors in a nest of dicts."""
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from tensors_of(value)


def nbytes_of(state: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors_of(state))
