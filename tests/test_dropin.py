"""The names, signatures and defaults that replacing ``s3torchconnector`` by ``aiockpt`` relies on."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

NAMES = {
    "aiockpt": ("S3ClientConfig S3Reader S3Writer S3ReaderConstructor S3Checkpoint S3Exception __version__".split()),
    "aiockpt.dcp": (
        "S3FileSystem S3StorageReader S3StorageWriter S3PrefixStrategyBase DefaultPrefixStrategy "
        "NumericPrefixStrategy BinaryPrefixStrategy HexPrefixStrategy RoundRobinPrefixStrategy".split()
    ),
    "aiockpt.dcp.s3_file_system": "S3FileSystem S3StorageReader S3StorageWriter".split(),
    "aiockpt.dcp.s3_prefix_strategy": (
        "S3PrefixStrategyBase DefaultPrefixStrategy NumericPrefixStrategy BinaryPrefixStrategy HexPrefixStrategy "
        "RoundRobinPrefixStrategy".split()
    ),
    "aiockpt.s3reader": (
        "S3Reader SequentialS3Reader RangedS3Reader DCPOptimizedS3Reader ItemRange RangeGroup S3ReaderConstructor "
        "S3ReaderConstructorProtocol DCPS3ReaderConstructorProtocol".split()
    ),
    "aiockpt.s3reader.constructor": "S3ReaderConstructor DCPOptimizedConstructor".split(),
    "aiockpt.s3reader.dcp_optimized": (
        "DCPOptimizedS3Reader ItemRange RangeGroup DEFAULT_MAX_GAP_SIZE FIND_ITEM_ERROR_PREFIX "
        "FALLBACK_GUIDANCE".split()
    ),
    "aiockpt.s3reader.sequential": ["SequentialS3Reader"],
    "aiockpt.s3reader.ranged": ["RangedS3Reader"],
    "aiockpt.s3reader.protocol": "S3ReaderConstructorProtocol DCPS3ReaderConstructorProtocol".split(),
    "aiockpt.s3reader.s3reader": ["S3Reader"],
}


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in NAMES.items() for name in names])
def test_names_live_where_they_are_looked_for(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)


def test_a_name_in_two_places_is_one_thing() -> None:
    import aiockpt
    from aiockpt import dcp, s3reader
    from aiockpt.dcp import s3_file_system, s3_prefix_strategy

    assert aiockpt.S3Reader is s3reader.S3Reader
    assert aiockpt.S3ReaderConstructor is s3reader.S3ReaderConstructor
    assert s3_file_system.S3StorageReader is dcp.S3StorageReader
    assert s3_prefix_strategy.HexPrefixStrategy is dcp.HexPrefixStrategy


def test_names_that_are_not_there() -> None:
    import aiockpt

    with pytest.raises(AttributeError, match="S3MapDataset"):
        aiockpt.S3MapDataset  # noqa: B018
    assert {"S3Reader", "S3Checkpoint"} <= set(dir(aiockpt))


def test_importing_the_package_imports_no_torch() -> None:
    command = "import sys, aiockpt; aiockpt.S3ClientConfig; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


NO_DEFAULT = inspect.Parameter.empty


def parameters(function: Callable[..., Any]) -> list[tuple[str, Any]]:
    """Positional parameters and their defaults, without self."""
    kinds = {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    found = inspect.signature(function).parameters.values()
    return [(p.name, p.default) for p in found if p.kind in kinds and p.name != "self"]


def seeds() -> list[tuple[Callable[..., Any], list[tuple[str, Any]]]]:
    from aiockpt import S3Checkpoint, S3ReaderConstructor
    from aiockpt.dcp import (
        BinaryPrefixStrategy,
        HexPrefixStrategy,
        NumericPrefixStrategy,
        RoundRobinPrefixStrategy,
        S3FileSystem,
        S3StorageReader,
        S3StorageWriter,
    )
    from aiockpt.s3reader import DCPOptimizedS3Reader
    from aiockpt.s3reader.constructor import DCPOptimizedConstructor

    must = NO_DEFAULT
    gap = 32 * 1024 * 1024
    prefixes = [("epoch_num", None), ("min_prefix_length", 10), ("prefix_count", None)]
    config = ("s3client_config", None)
    return [
        (S3FileSystem, [("region", must), ("s3_client", None), config, ("reader_constructor", None)]),
        (S3FileSystem.create_stream, [("path", must), ("mode", must)]),
        (S3FileSystem.concat_path, [("path", must), ("suffix", must)]),
        (S3FileSystem.init_path, [("path", must)]),
        (S3FileSystem.rename, [("old_path", must), ("new_path", must)]),
        (S3FileSystem.mkdir, [("path", must)]),
        (S3FileSystem.exists, [("path", must)]),
        (S3FileSystem.rm_file, [("path", must)]),
        (S3FileSystem.validate_checkpoint_id, [("checkpoint_id", must)]),
        (S3StorageReader, [("region", must), ("path", must), config, ("reader_constructor", None)]),
        (S3StorageReader.validate_checkpoint_id, [("checkpoint_id", must)]),
        (S3StorageReader.prepare_local_plan, [("plan", must)]),
        (
            S3StorageWriter,
            [("region", must), ("path", must), config, ("prefix_strategy", None), ("thread_count", 1)],
        ),
        (S3StorageWriter.prepare_global_plan, [("plans", must)]),
        (S3StorageWriter.validate_checkpoint_id, [("checkpoint_id", must)]),
        (NumericPrefixStrategy, [("base", must), *prefixes]),
        (BinaryPrefixStrategy, prefixes),
        (HexPrefixStrategy, prefixes),
        (RoundRobinPrefixStrategy, [("user_prefixes", must), ("epoch_num", None)]),
        (RoundRobinPrefixStrategy.generate_prefix, [("rank", must)]),
        (
            DCPOptimizedS3Reader,
            [
                ("bucket", must),
                ("key", must),
                ("item_ranges", must),
                ("get_object_info", must),
                ("get_stream", must),
                ("max_gap_size", gap),
            ],
        ),
        (DCPOptimizedConstructor, [("max_gap_size", gap)]),
        (
            DCPOptimizedConstructor.set_item_ranges_by_file,
            [("plan_items", must), ("storage_data", must), ("base_path", must)],
        ),
        (S3ReaderConstructor.sequential, []),
        (S3ReaderConstructor.range_based, [("buffer_size", None)]),
        (S3ReaderConstructor.dcp_optimized, [("max_gap_size", gap)]),
        (S3ReaderConstructor.default, []),
        (S3ReaderConstructor.get_reader_type_string, [("constructor", must)]),
        (S3Checkpoint, [("region", must), ("endpoint", None), config]),
    ]


@pytest.mark.parametrize(("function", "expected"), seeds(), ids=lambda value: getattr(value, "__qualname__", ""))
def test_signatures_and_defaults(function: Callable[..., Any], expected: list[tuple[str, Any]]) -> None:
    assert parameters(function)[: len(expected)] == expected
    assert all(default is not NO_DEFAULT for _, default in parameters(function)[len(expected) :])


def test_the_configs_first_fields() -> None:
    from aiockpt import S3ClientConfig

    fields = [(field.name, field.default) for field in dataclasses.fields(S3ClientConfig)]
    assert fields[:7] == [
        ("throughput_target_gbps", 10.0),
        ("part_size", 8 * 1024 * 1024),
        ("unsigned", False),
        ("force_path_style", False),
        ("max_attempts", 10),
        ("profile", None),
        ("requester_pays", False),
    ]
    assert all(
        field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        for field in dataclasses.fields(S3ClientConfig)
    )
    assert S3ClientConfig(1.0, 5 << 20, True, True, 2, "p", False).profile == "p"
    with pytest.raises(dataclasses.FrozenInstanceError):
        S3ClientConfig().part_size = 3  # type: ignore[misc]
    with pytest.raises(ValueError, match="requester_pays"):
        S3ClientConfig(requester_pays=True, unsigned=True)


def test_what_the_classes_are() -> None:
    import io

    from torch.distributed.checkpoint.filesystem import FileSystemBase, FileSystemReader, FileSystemWriter

    from aiockpt import S3Exception, S3Reader, S3Writer, dcp
    from aiockpt.errors import AccessDenied, NotFound

    assert issubclass(dcp.S3FileSystem, FileSystemBase)
    assert issubclass(dcp.S3StorageReader, FileSystemReader)
    assert issubclass(dcp.S3StorageWriter, FileSystemWriter)
    assert issubclass(S3Reader, io.BufferedIOBase)
    assert issubclass(S3Writer, io.BufferedIOBase)
    assert issubclass(NotFound, S3Exception)
    assert issubclass(NotFound, FileNotFoundError)
    assert issubclass(AccessDenied, S3Exception)
    assert issubclass(AccessDenied, PermissionError)


def test_the_package_is_typed() -> None:
    from importlib.resources import files

    assert (files("aiockpt") / "py.typed").is_file()


def test_type_checkers_see_the_protocols() -> None:
    """What mypy makes of these assignments is the test; that they can be made, is checked here."""
    from torch.distributed.checkpoint.filesystem import FileSystemBase
    from torch.distributed.checkpoint.storage import StorageReader, StorageWriter

    from aiockpt import S3Checkpoint, S3Reader, S3ReaderConstructor, S3Writer
    from aiockpt.dcp import S3FileSystem, S3StorageReader, S3StorageWriter
    from aiockpt.s3reader import DCPS3ReaderConstructorProtocol, S3ReaderConstructorProtocol
    from aiockpt.s3reader.constructor import DCPOptimizedConstructor

    sequential: S3ReaderConstructorProtocol = S3ReaderConstructor.sequential()
    ranged: S3ReaderConstructorProtocol = S3ReaderConstructor.range_based(0)
    optimized: DCPS3ReaderConstructorProtocol = S3ReaderConstructor.dcp_optimized(float("inf"))
    own: DCPS3ReaderConstructorProtocol = DCPOptimizedConstructor()
    for constructor in (sequential, ranged, optimized, own):
        reader: StorageReader = S3StorageReader("us-east-1", "s3://b/k", reader_constructor=constructor)
        system: FileSystemBase = S3FileSystem("us-east-1", reader_constructor=constructor)
        assert isinstance(constructor, S3ReaderConstructorProtocol)
        assert isinstance(reader, S3StorageReader)
        assert isinstance(system, S3FileSystem)
    writer: StorageWriter = S3StorageWriter("us-east-1", "s3://b/k", thread_count=2)
    assert isinstance(writer, S3StorageWriter)
    open_reader: Callable[[str], S3Reader] = S3Checkpoint("us-east-1").reader
    open_writer: Callable[[str], S3Writer] = S3Checkpoint("us-east-1").writer
    assert callable(open_reader)
    assert callable(open_writer)
