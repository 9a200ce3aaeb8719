from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter, SerializationFormat
from torch.distributed.checkpoint.planner import SavePlan, WriteItem

from aiockpt import S3ClientConfig, S3Exception
from aiockpt.dcp import (
    BinaryPrefixStrategy,
    DefaultPrefixStrategy,
    HexPrefixStrategy,
    NumericPrefixStrategy,
    RoundRobinPrefixStrategy,
    S3PrefixStrategyBase,
    S3StorageWriter,
)
from aiockpt.errors import AccessDenied, AiockptError, ConfigError, TransportError
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from dcp.checkpoints import Place, emptied, failure, random_tensor, same_bits

STATE = {"w": random_tensor((300, 300), torch.float32, 1), "v": torch.randn(5), "step": 3}
LARGE = {f"w{n}": random_tensor((1 << 20,), torch.float32, n) for n in range(4)} | {"step": 3}


def test_what_the_seeds_say_of_it() -> None:
    writer = S3StorageWriter("us-east-1", "s3://bucket/x")
    assert isinstance(writer, FileSystemWriter)
    assert writer.path == "s3://bucket/x"
    assert isinstance(writer.prefix_strategy, DefaultPrefixStrategy)
    assert (writer.thread_count, writer.sync_files) == (1, False)


def test_every_keyword_of_the_stock_writer_and_ours() -> None:
    writer = S3StorageWriter(
        "us-east-1",
        "s3://bucket/x",
        S3ClientConfig(max_attempts=3),
        HexPrefixStrategy(),
        5,
        single_file_per_rank=False,
        overwrite=False,
        per_thread_copy_ahead=7,
        cache_staged_state_dict=True,
        serialization_format=SerializationFormat.SAFETENSORS,
        sync_files=True,
        _extensions=[],
        part_size=16 << 20,
    )
    assert (writer.thread_count, writer.single_file_per_rank, writer.overwrite) == (5, False, False)
    assert (writer.per_thread_copy_ahead, writer.cache_staged_state_dict) == (7, True)
    assert writer.serialization_format is SerializationFormat.SAFETENSORS
    config = writer.fs.store.config  # type: ignore[attr-defined]
    assert (config.max_attempts, config.part_size) == (3, 16 << 20)


def test_unknown_keywords() -> None:
    with pytest.raises(TypeError, match="thread_cuont"):
        S3StorageWriter("us-east-1", "s3://bucket/x", thread_cuont=2)


def test_the_strategy_names_each_rank_in_the_global_plan() -> None:
    writer = S3StorageWriter("us-east-1", "s3://b/x", prefix_strategy=RoundRobinPrefixStrategy(["a", "b"]))
    plans = writer.prepare_global_plan([SavePlan([]) for _ in range(3)])
    assert [plan.storage_data.prefix for plan in plans] == ["a/__0_", "b/__1_", "a/__2_"]


class Mine(S3PrefixStrategyBase):
    def generate_prefix(self, rank: int) -> str:
        return f"mine-{rank}-"


class Octal(NumericPrefixStrategy):
    def __init__(self) -> None:
        super().__init__(base=8, min_prefix_length=3)


@pytest.mark.parametrize(
    ("strategy", "name"),
    [
        (None, "__0_0"),
        (DefaultPrefixStrategy(), "__0_0"),
        (HexPrefixStrategy(epoch_num=4), "0000000000/epoch_4/__0_0"),
        (BinaryPrefixStrategy(min_prefix_length=1, prefix_count=9), "0000/__0_0"),
        (RoundRobinPrefixStrategy(["p/q"], epoch_num=1), "p/q/epoch_1/__0_0"),
        (Mine(), "mine-0-0"),
        (Octal(), "000/__0_0"),
    ],
)
def test_where_objects_lie(foreign: Place, strategy: S3PrefixStrategyBase | None, name: str) -> None:
    foreign.save(STATE, "a/ckpt", prefix_strategy=strategy)
    assert foreign.keys() == sorted(["a/ckpt/.metadata", f"a/ckpt/{name}.distcp"])
    assert same_bits(foreign.load(emptied(STATE), "a/ckpt"), STATE)


def test_one_object_for_each_item(local: Place) -> None:
    local.save(STATE, single_file_per_rank=False, prefix_strategy=HexPrefixStrategy())
    assert local.keys("ckpt/0") == [f"ckpt/0000000000/__0_{n}.distcp" for n in range(3)]


def test_as_many_objects_as_threads(local: Place) -> None:
    """But none without items, which no metadata would refer to."""
    local.save({name: torch.ones(3) for name in "abc"} | {"step": 1}, thread_count=3)
    assert local.keys("ckpt/_") == [f"ckpt/__0_{n}.distcp" for n in range(3)]
    local.save({"w": torch.ones(3)}, "less", thread_count=3)
    assert local.keys("less/") == ["less/.metadata", "less/__0_0.distcp"]


@pytest.mark.parametrize("count", [0, -1])
def test_there_is_at_least_one_object(local: Place, count: int) -> None:
    with pytest.raises(ConfigError, match=f"thread_count must be at least 1, got {count}"):
        local.writer(thread_count=count)


def test_settings_for_what_is_written(local: Place) -> None:
    local.save(STATE, extra_args={"Metadata": {"team": "x"}, "ContentType": "application/x-checkpoint"})
    head = local.client.head_object(Bucket=local.bucket, Key="ckpt/__0_0.distcp")
    assert head["ContentType"] == "application/x-checkpoint"
    assert {key.lower(): value for key, value in head["Metadata"].items()} == {"team": "x"}


class Failing(DefaultSavePlanner):
    """Raises when the third item is resolved: others are already on their way."""

    def __init__(self) -> None:
        super().__init__()
        self._calls = 0

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        self._calls += 1
        if self._calls == 3:
            raise ZeroDivisionError("mine")
        return super().resolve_data(write_item)


def save_fails(place: Place, state: dict[str, Any], **kwargs: Any) -> BaseException:
    with pytest.raises(CheckpointException) as caught:
        place.save(state, **kwargs)
    return failure(caught.value)


@pytest.mark.parametrize("tensor", [torch.eye(300).to_sparse(), torch.empty(3, device="meta")], ids=["sparse", "meta"])
def test_tensors_without_dense_elements_are_refused_by_name(local: Place, tensor: torch.Tensor) -> None:
    error = save_fails(local, {"dense": torch.ones(3), "odd": tensor})
    assert isinstance(error, ValueError)
    assert "'odd'" in str(error)


@pytest.mark.parametrize("single_file_per_rank", [True, False])
@pytest.mark.parametrize("form", SerializationFormat)
def test_a_failing_planner_is_what_is_raised_and_nothing_is_left(
    local: Place, local_endpoint: LocalEndpoint, single_file_per_rank: bool, form: SerializationFormat
) -> None:
    error = save_fails(
        local,
        LARGE,
        planner=Failing(),
        single_file_per_rank=single_file_per_rank,
        serialization_format=form,
        part_size=5 << 20,
    )
    assert isinstance(error, ZeroDivisionError)
    assert local.uploads() == []
    assert local.keys("ckpt/.metadata") == []
    assert local_endpoint.stats().requests_current == 0
    local.save(LARGE)
    assert same_bits(local.load(emptied(LARGE)), LARGE)


@pytest.mark.parametrize("operation", ["PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"])
def test_a_refused_upload_leaves_nothing(local: Place, local_endpoint: LocalEndpoint, operation: str) -> None:
    local_endpoint.add_fault(Fault(FaultKind.ERROR, operation=operation, count=None, status=403, code="AccessDenied"))
    error = save_fails(local, LARGE, part_size=5 << 20)
    assert isinstance(error, AccessDenied)
    assert local.uri("ckpt/") in str(error)
    assert local.uploads() == []
    assert local.keys("ckpt/.metadata") == []


@pytest.mark.parametrize("kind", [FaultKind.RESET, FaultKind.END_EARLY, FaultKind.ERROR, FaultKind.LOST_REPLY])
@pytest.mark.parametrize("operation", ["PutObject", "UploadPart", "CreateMultipartUpload", "CompleteMultipartUpload"])
def test_troubles_on_the_way_are_made_good(
    local: Place, local_endpoint: LocalEndpoint, operation: str, kind: FaultKind
) -> None:
    local_endpoint.add_fault(Fault(kind, operation=operation, count=1))
    state = LARGE if operation != "PutObject" else STATE
    local.save(state, part_size=5 << 20)
    assert local_endpoint.stats().faults == 1
    lost_id = operation == "CreateMultipartUpload" and kind is not FaultKind.ERROR  # performed, and its answer lost
    assert len(local.uploads()) == lost_id
    assert same_bits(local.load(emptied(state)), state)


@pytest.mark.parametrize("operation", ["PutObject", "UploadPart"])
def test_bits_flipped_on_the_way_are_sent_again(local: Place, local_endpoint: LocalEndpoint, operation: str) -> None:
    local_endpoint.add_fault(Fault(FaultKind.FLIP_BIT, operation=operation, after_bytes=1000, count=1))
    state = LARGE if operation != "PutObject" else STATE
    local.save(state, part_size=5 << 20)
    assert local_endpoint.stats().faults == 1
    assert same_bits(local.load(emptied(state)), state)


def test_no_bucket(foreign: Place) -> None:
    error = save_fails(Place(foreign.server, "no-such-bucket-anywhere"), STATE)
    assert isinstance(error, S3Exception)
    assert "no-such-bucket-anywhere" in str(error)


def test_wrong_credentials(foreign: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    if not foreign.server.checks_signature:
        pytest.skip("this server takes any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    error = save_fails(foreign, STATE, connect_timeout_s=6.0)
    assert isinstance(error, AccessDenied)
    assert foreign.keys() == []


def test_nobody_there(free_port: int, monkeypatch: pytest.MonkeyPatch, local: Place) -> None:
    nowhere = Place(type(local.server)("none", f"http://127.0.0.1:{free_port}", "a", "b"), "bucket")
    error = save_fails(nowhere, STATE, max_attempts=2, backoff_base_s=0.01)
    assert isinstance(error, TransportError)
    assert nowhere.uri("ckpt") in str(error)


def test_a_path_that_is_no_s3_uri() -> None:
    from dcp.checkpoints import save

    writer = S3StorageWriter("us-east-1", "/tmp/ckpt")
    with pytest.raises((CheckpointException, ValueError), match="Only s3:// URIs are supported"):
        save(STATE, writer)


def test_errors_cross_ranks(local: Place) -> None:
    """DCP gathers exceptions by pickling them."""
    import pickle

    error = save_fails(Place(local.server, "no-such-bucket-anywhere"), STATE)
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(error, AiockptError)
    assert (type(again), str(again)) == (type(error), str(error))


def test_little_memory_is_enough(local: Place) -> None:
    """Tensors that need staging, small ones, and objects, with a budget below one block."""
    state = {
        "t": random_tensor((1500, 2001), torch.float32, 1)[:, :2000],
        "o": "x" * 3_000_000,
    } | {f"s{n}": torch.full((50,), float(n)) for n in range(2000)}
    for form in SerializationFormat:
        local.save(state, str(form), memory_bytes=1 << 20, part_size=5 << 20, serialization_format=form)
        assert same_bits(local.load(emptied(state), str(form)), state)


def test_saving_does_not_touch_the_tensors(local: Place) -> None:
    parameter = torch.nn.Parameter(torch.randn(300, 300))
    before = parameter.detach().clone(), parameter._version
    local.save({"p": parameter, "t": parameter.detach().t()})
    assert torch.equal(parameter.detach(), before[0])
    assert parameter._version == before[1]
    assert parameter.grad is None
