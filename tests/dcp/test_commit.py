from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import WriteItem

from aiockpt.blocking.store import Store
from aiockpt.config import S3ClientConfig
from aiockpt.dcp import S3FileSystem, S3StorageReader, S3StorageWriter
from aiockpt.dcp.commit import _committed, survey
from aiockpt.dcp.recent import REMEMBERED, Recent
from aiockpt.errors import PreconditionFailed, ServiceError
from aiockpt.model import NOTHING, ObjectId
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from dcp.checkpoints import Place
from servers.base import S3Server

REGION = "us-east-1"


@pytest.fixture(autouse=True)
def _quiet(local_endpoint: LocalEndpoint, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in local_endpoint.environ().items():
        monkeypatch.setenv(name, value)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is")
        yield


@pytest.fixture
def path(local_bucket: str) -> str:
    return f"s3://{local_bucket}/run/step-7"


def state(value: float, size: int = 1000) -> dict[str, torch.Tensor]:
    return {"w": torch.full((size,), value), "b": torch.full((3, 5), value)}


def save(path: str, value: float, planner: DefaultSavePlanner | None = None, **settings: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*holds a checkpoint already")
        dcp.save(state(value), storage_writer=S3StorageWriter(REGION, path, **settings), planner=planner)


def loaded(path: str) -> float:
    target = state(0)
    dcp.load(target, storage_reader=S3StorageReader(REGION, path))
    values = {value for tensor in target.values() for value in tensor.flatten().tolist()}
    assert len(values) == 1, "a mixture of two checkpoints"
    return float(values.pop())


def names(path: str) -> list[str]:
    return sorted(uri.removeprefix(path + "/") for uri in S3FileSystem(REGION).ls(path))


def cause(error: CheckpointException) -> BaseException:
    (failure,) = error.failures.values()
    exception: BaseException = failure[0]
    return exception


def test_a_first_save_has_the_contracts_names(path: str) -> None:
    save(path, 1)
    assert names(path) == [".metadata", "__0_0.distcp"]


def test_overwriting_writes_beside_and_then_deletes_what_is_replaced(path: str) -> None:
    for value in (1, 2, 3):
        save(path, value)
        assert loaded(path) == value
    assert names(path) == [".metadata", "__0_2.distcp"]


def test_more_objects_replaced_by_fewer_leave_nothing(path: str) -> None:
    save(path, 1, single_file_per_rank=False)
    assert len(names(path)) == 3
    save(path, 2)
    assert names(path) == [".metadata", "__0_2.distcp"]


def test_overwrite_says_so_and_can_be_refused(path: str) -> None:
    save(path, 1)
    with pytest.warns(UserWarning, match="holds a checkpoint already"):
        dcp.save(state(2), storage_writer=S3StorageWriter(REGION, path))
    with pytest.raises(CheckpointException) as error:
        save(path, 3, overwrite=False)
    assert "already exists" in str(cause(error.value))
    assert loaded(path) == 2
    dcp.save(state(4), storage_writer=S3StorageWriter(REGION, path, overwrite=True))  # warnings are errors here
    assert loaded(path) == 4


class FailingPlanner(DefaultSavePlanner):
    def resolve_data(self, write_item: WriteItem) -> Any:
        if write_item.index.fqn == "w":
            raise OSError("no such luck")
        return super().resolve_data(write_item)


def test_a_failed_overwrite_leaves_the_old_checkpoint(path: str, local_endpoint: LocalEndpoint) -> None:
    save(path, 1)
    with pytest.raises(CheckpointException) as error:
        save(path, 2, planner=FailingPlanner())
    assert "no such luck" in str(cause(error.value))
    assert loaded(path) == 1
    assert local_endpoint.stats().uploads_open == 0
    save(path, 3)
    assert loaded(path) == 3


@pytest.mark.parametrize(
    ("operation", "skip"),
    [("UploadPart", 0), ("UploadPart", 1), ("CompleteMultipartUpload", 0), ("PutObject", 0)],
    ids=["first part", "second part", "data complete", "metadata"],
)
def test_a_save_that_breaks_anywhere_leaves_the_old_checkpoint(
    path: str, local_endpoint: LocalEndpoint, operation: str, skip: int
) -> None:
    save(path, 1)
    local_endpoint.add_fault(
        Fault(FaultKind.ERROR, operation=operation, status=400, code="InvalidRequest", skip=skip, count=None)
    )
    big = {"w": torch.full((3 << 20,), 2.0), "b": torch.full((3, 5), 2.0)}
    writer = S3StorageWriter(REGION, path, overwrite=True)
    with warnings.catch_warnings(), pytest.raises(CheckpointException):
        warnings.filterwarnings("ignore", message=".*holds a checkpoint already")
        dcp.save(big, storage_writer=writer)
    local_endpoint.clear_faults()
    assert loaded(path) == 1
    assert local_endpoint.stats().uploads_open == 0


class WaitingPlanner(DefaultSavePlanner):
    """Holds the save where its data is about to be written, until told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.go_on = threading.Event(), threading.Event()

    def resolve_data(self, write_item: WriteItem) -> Any:
        self.reached.set()
        assert self.go_on.wait(30)
        return super().resolve_data(write_item)


def test_what_will_be_replaced_is_looked_up_while_the_new_data_are_written(
    path: str, local_endpoint: LocalEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(path, 1)
    monkeypatch.setattr("aiockpt.dcp.commit._committed", Recent())  # as if another process had written it
    local_endpoint.reset_stats()
    planner = WaitingPlanner()
    thread = threading.Thread(target=save, args=(path, 2, planner))
    thread.start()
    try:
        assert planner.reached.wait(30)
        while not any(record.operation == "GetObject" for record in local_endpoint.requests()):  # or time runs out
            assert not any(record.operation == "PutObject" for record in local_endpoint.requests())
    finally:
        planner.go_on.set()
        thread.join(30)
    operations = Counter(record.operation for record in local_endpoint.requests())
    assert operations == {"HeadObject": 1, "ListObjectsV2": 1, "GetObject": 1, "PutObject": 2, "DeleteObject": 1}
    assert names(path) == [".metadata", "__0_1.distcp"]


def test_what_this_process_has_committed_need_not_be_read_to_be_replaced(
    path: str, local_endpoint: LocalEndpoint
) -> None:
    save(path, 1)
    local_endpoint.reset_stats()
    save(path, 2)
    operations = Counter(record.operation for record in local_endpoint.requests())
    assert operations == {"HeadObject": 1, "ListObjectsV2": 1, "PutObject": 2, "DeleteObject": 1}
    assert names(path) == [".metadata", "__0_1.distcp"]


def test_a_checkpoint_of_the_same_name_elsewhere_is_another(path: str, local_bucket: str) -> None:
    """Also if its metadata have the same ETag: stores may count them, or call all of them the same."""
    save(path, 1)
    with LocalEndpoint() as other:
        server = S3Server("other", other.url, other.access_key, other.secret_key)
        Place(server, local_bucket).client.create_bucket(Bucket=local_bucket)
        metadata = ObjectId.parse(f"{path}/.metadata")
        there = Store(S3ClientConfig(endpoint_url=other.url), REGION)
        there.put(metadata, Store(S3ClientConfig(), REGION).get_small(metadata))
        other.reset_stats()
        save(path, 2, endpoint_url=other.url)
        operations = Counter(record.operation for record in other.requests())
        assert operations["GetObject"] == 1


def test_only_some_commits_are_remembered(path: str) -> None:
    for number in range(REMEMBERED + 3):
        save(f"{path}-{number}", number)
    assert len(_committed._rows) == REMEMBERED


@pytest.mark.parametrize("first", [False, True])
def test_of_two_writers_at_one_path_one_wins(path: str, first: bool) -> None:
    if not first:
        save(path, 1)
    planner = WaitingPlanner()
    errors: list[BaseException] = []

    def late() -> None:
        try:
            save(path, 2, planner=planner)
        except CheckpointException as error:
            errors.append(cause(error))

    thread = threading.Thread(target=late)
    thread.start()
    assert planner.reached.wait(30)
    save(path, 3)
    planner.go_on.set()
    thread.join(30)
    (error,) = errors
    assert isinstance(error, PreconditionFailed)
    assert path in str(error)
    assert loaded(path) == 3


@pytest.mark.parametrize("code", ["NoSuchKey", "PreconditionFailed"])
def test_a_checkpoint_deleted_while_it_is_replaced_is_replaced_all_the_same(
    path: str, local_endpoint: LocalEndpoint, code: str
) -> None:
    """S3 answers an ``If-Match`` that finds no object with 404, some stores with 412."""
    save(path, 1)
    planner = WaitingPlanner()
    thread = threading.Thread(target=save, args=(path, 2, planner))
    thread.start()
    assert planner.reached.wait(30)
    S3FileSystem(REGION).rm_file(f"{path}/.metadata")
    if code == "PreconditionFailed":
        local_endpoint.add_fault(Fault(FaultKind.ERROR, "PutObject", key=".metadata", status=412, code=code))
    planner.go_on.set()
    thread.join(30)
    assert loaded(path) == 2


def test_a_lost_answer_to_the_commit_is_no_failure(path: str, local_endpoint: LocalEndpoint) -> None:
    local_endpoint.add_fault(Fault(FaultKind.LOST_REPLY, operation="PutObject", count=None, skip=0, probability=0.5))
    for value in (1, 2, 3):
        save(path, value, backoff_base_s=0.001)
        assert loaded(path) == value


def test_a_store_without_conditional_writes_still_commits(path: str, local_endpoint: LocalEndpoint) -> None:
    local_endpoint.add_fault(Fault(FaultKind.IGNORE_CONDITIONS, count=None))
    save(path, 1)
    save(path, 2)
    assert loaded(path) == 2
    assert names(path) == [".metadata", "__0_1.distcp"]


def test_a_store_that_refuses_conditional_writes_is_written_without(path: str, local_endpoint: LocalEndpoint) -> None:
    local_endpoint.add_fault(Fault(FaultKind.ERROR, operation="PutObject", status=501, code="NotImplemented", count=1))
    save(path, 1)
    assert loaded(path) == 1


def test_survey_of_an_empty_path(local_endpoint: LocalEndpoint, local_bucket: str) -> None:
    store = Store(S3ClientConfig(), REGION)
    base = ObjectId(local_bucket, "nothing")
    found = store.run(lambda engine: survey(engine, base / ".metadata", base / "__0_"))
    assert (found.exists, found.next_number, found.replaces) == (False, 0, NOTHING)


def test_survey_numbers_on_from_leftovers_of_this_prefix_only(local_bucket: str) -> None:
    store = Store(S3ClientConfig(), REGION)
    base = ObjectId(local_bucket, "left")
    for name in (
        "__0_4.distcp",
        "__0_x.distcp",
        "__00_9.distcp",
        "__1_8.distcp",
        "__0_11.distcp.tmp",
        "__0_5/6.distcp",
    ):
        store.put(base / name, b"x")
    found = store.run(lambda engine: survey(engine, base / ".metadata", base / "__0_"))
    assert (found.exists, found.next_number) == (False, 5)


def test_survey_of_a_missing_bucket() -> None:
    store = Store(S3ClientConfig(), REGION)
    base = ObjectId("no-such-bucket", "x")
    with pytest.raises(ServiceError, match="NoSuchBucket"):
        store.run(lambda engine: survey(engine, base / ".metadata", base / "__0_"))
