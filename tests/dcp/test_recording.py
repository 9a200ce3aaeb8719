"""Reports of real saves and loads, compared with what the endpoint has counted."""

from __future__ import annotations

import dataclasses
import json
import logging
import pickle
import re
import threading
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import LoadPlan

import aiockpt
from aiockpt import S3ReaderConstructor
from aiockpt.dcp import commit
from aiockpt.dcp.recent import Recent
from aiockpt.dcp.recording import Recording
from aiockpt.model import MiB
from aiockpt.observe.report import Phase, Progress, Report
from aiockpt.observe.timeline import WORK_TRACK
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from dcp.checkpoints import Place, emptied, load, random_tensor, same_bits, save

#: Three parts or requests at least, small tensors that are fetched together, and an object.
STATE: dict[str, Any] = {
    "large": random_tensor((20 * MiB,), torch.uint8),
    **{f"small {n}": random_tensor((1000,), torch.float32, n) for n in range(10)},
    "step": 3,
}


def bodies(endpoint: LocalEndpoint, *operations: str) -> tuple[int, int]:
    """Bytes of objects that the endpoint has received and sent."""
    records = [record for record in endpoint.requests() if record.operation in operations]
    return sum(record.body_bytes_in for record in records), sum(record.body_bytes_out for record in records)


def saved(place: Place, state: dict[str, Any] = STATE, **kwargs: Any) -> Report:
    writer = place.writer(**kwargs)
    save(state, writer)
    assert writer.report is not None
    return writer.report


def loaded(place: Place, state: dict[str, Any], **kwargs: Any) -> Report:
    reader = place.reader(**kwargs)
    load(state, reader)
    assert reader.report is not None
    return reader.report


def test_a_save_counts_what_the_endpoint_counts(local: Place, local_endpoint: LocalEndpoint) -> None:
    report = saved(local)
    assert report.operations == local_endpoint.stats().requests
    assert (report.sent_bytes, 0) == bodies(local_endpoint, "PutObject", "UploadPart")
    stored = sum(len(local.get(key)) for key in local.keys("ckpt/"))
    assert report.wanted_bytes == report.sent_bytes == stored
    assert (report.kind, report.uri, report.rank) == ("save", local.uri("ckpt"), 0)
    assert report.phases.keys() == {Phase.PLAN, Phase.TRANSFER, Phase.STAGING, Phase.COMMIT}
    assert report.phases["staging"] <= report.phases["transfer"] <= report.elapsed_s
    assert report.first_byte_s is not None
    assert 0 < report.first_byte_s <= report.phases["transfer"]
    assert report.cpu_s > 0


def test_a_load_counts_what_the_endpoint_counts(local: Place, local_endpoint: LocalEndpoint) -> None:
    local.save(STATE)
    metadata_bytes = len(local.get("ckpt/.metadata"))
    local_endpoint.reset_stats()
    state = emptied(STATE)
    report = loaded(local, state)
    assert same_bits(state, STATE)
    assert report.operations == local_endpoint.stats().requests
    assert (0, report.received_bytes) == bodies(local_endpoint, "GetObject")
    tensors = 20 * MiB + 10 * 4000
    assert tensors + metadata_bytes < report.wanted_bytes < tensors + metadata_bytes + 2000  # and the object
    assert 1 <= report.amplification < 1.002
    assert report.phases.keys() == {Phase.PLAN, Phase.TRANSFER, Phase.VERIFY}
    assert (report.retries, report.hedges, report.throttles, report.slices) == (0, 0, 0, 0)


def test_retries_and_throttles_count(local: Place, local_endpoint: LocalEndpoint) -> None:
    local.save(STATE)
    local_endpoint.reset_stats()
    local_endpoint.add_fault(Fault(FaultKind.ERROR, "GetObject", skip=1, count=2))
    local_endpoint.add_fault(Fault(FaultKind.RESET, "GetObject", skip=3, after_bytes=1000))
    report = loaded(local, emptied(STATE))
    assert report.operations == local_endpoint.stats().requests
    assert report.throttles == 2
    assert report.retries == 3


@pytest.mark.filterwarnings("ignore:.*holds a checkpoint already")
def test_looking_at_what_a_save_replaces_counts(
    local: Place, local_endpoint: LocalEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(local)
    monkeypatch.setattr(commit, "_committed", Recent())  # as in another process, which has to read the metadata
    local_endpoint.reset_stats()
    report = saved(local)
    assert report.operations == local_endpoint.stats().requests
    assert report.operations["GetObject"] == 1


def test_a_second_look_at_damaged_metadata_counts(local: Place, local_endpoint: LocalEndpoint) -> None:
    local.save(STATE)
    local_endpoint.reset_stats()
    local_endpoint.add_fault(Fault(FaultKind.FLIP_BIT, "GetObject", key=".metadata", after_bytes=100))
    report = loaded(local, emptied(STATE), checksum="off")  # so that only the metadata themselves tell
    assert report.operations == local_endpoint.stats().requests


def test_a_load_through_streams_has_a_report_too(local: Place, local_endpoint: LocalEndpoint) -> None:
    local.save(STATE)
    local_endpoint.reset_stats()
    report = loaded(local, emptied(STATE), reader_constructor=S3ReaderConstructor.range_based())
    assert report.operations == local_endpoint.stats().requests
    assert (0, report.received_bytes) == bodies(local_endpoint, "GetObject")


def test_slices_say_what_they_were_fetched_as(
    local: Place, local_endpoint: LocalEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    rows, columns = 64, 32 * 1024  # float32: rows of 128 KiB
    local.save({"w": random_tensor((rows, columns), torch.float32)})
    wanted = torch.zeros(rows, columns // 2)
    planner = ColumnsPlanner()
    with caplog.at_level(logging.DEBUG, "aiockpt"):
        reader = local.reader()
        load({"w": wanted}, reader, planner)
    report = reader.report
    assert report is not None
    assert report.slices == 1
    assert report.stretches == 2  # of 4 MiB each: halves of rows of 128 KiB are fetched with their gaps
    assert 1.9 < report.amplification < 2.01
    (said,) = (record.getMessage() for record in caplog.records if "a slice" in record.getMessage())
    assert f"(0, 0)+({rows}, {columns // 2}) of ({rows}, {columns}): {wanted.nbytes} bytes in 2 ranges" in said


class ColumnsPlanner(DefaultLoadPlanner):
    """Has the first half of each row loaded, as a rank of two would that shard columns."""

    def create_local_plan(self) -> Any:
        self.state_dict["w"] = torch.zeros(64, 32 * 1024)
        plan = super().create_local_plan()
        (item,) = plan.items
        lengths = torch.Size([64, 16 * 1024])
        return LoadPlan([dataclasses.replace(item, lengths=lengths)])


def test_progress_from_another_thread_while_bytes_move(local: Place, local_endpoint: LocalEndpoint) -> None:
    reader, writer = local.reader(), local.writer()
    assert reader.progress() is writer.progress() is None
    assert reader.report is writer.report is None
    save(STATE, writer)
    local_endpoint.add_fault(Fault(FaultKind.STALL, "GetObject", skip=2))
    thread = threading.Thread(target=load, args=(emptied(STATE), reader))
    thread.start()
    while (seen := reader.progress()) is None or seen.done_bytes < 10 * MiB:
        assert thread.is_alive()
    assert seen.done_bytes < seen.total_bytes
    assert reader.report is None
    local_endpoint.clear_faults()
    thread.join()
    for progress in (reader.progress(), writer.progress()):
        assert isinstance(progress, Progress)
        assert progress.done_bytes == progress.total_bytes
        assert progress.remaining_s == 0


def test_each_save_and_load_logs_one_line(local: Place, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "aiockpt"):
        lines = [str(saved(local)), str(loaded(local, emptied(STATE)))]
    ours = [record for record in caplog.records if record.name == "aiockpt"]
    assert [(record.levelname, record.getMessage()) for record in ours] == [("INFO", line) for line in lines]


def test_a_second_load_counts_from_the_beginning(local: Place) -> None:
    local.save(STATE)
    reader = local.reader()
    load(emptied(STATE), reader)
    first = reader.report
    load(emptied(STATE), reader)
    assert first is not None
    assert reader.report is not None
    assert reader.report.operations == first.operations


def test_after_a_failure_there_is_no_report(local: Place) -> None:
    local.save(STATE)
    reader = local.reader()
    load(emptied(STATE), reader)
    for key in local.keys("ckpt/__"):
        local.put(key, b"short")
    with pytest.raises(CheckpointException):
        load(emptied(STATE), reader)
    assert reader.report is None


def test_adapters_pickle_with_their_report(local: Place) -> None:
    writer = local.writer()
    save(STATE, writer)
    copy = pickle.loads(pickle.dumps(writer))
    assert copy.report == writer.report
    assert copy.progress() is None


def test_finishing_twice_tells_more(caplog: pytest.LogCaptureFixture) -> None:
    recording = Recording("save")
    recorder = recording.current("s3://bucket/ckpt")
    assert recording.current("s3://bucket/ckpt") is recorder
    recording.finish()
    recorder.add(5)
    recording.finish()
    assert recording.report is not None
    assert recording.report.wanted_bytes == 5


def test_a_hedged_load_says_so(local: Place, local_endpoint: LocalEndpoint) -> None:
    state = {"w": random_tensor((64 * MiB,), torch.uint8)}
    local.save(state)
    local_endpoint.reset_stats()
    local_endpoint.add_fault(Fault(FaultKind.CRAWL, "GetObject", skip=15, bytes_per_s=5000))
    report = loaded(local, emptied(state), hedge_share=0.1)
    assert report.hedges == 1
    assert report.retries == 0
    assert report.operations == local_endpoint.stats().requests


def test_a_hedged_save_says_so(local: Place, local_endpoint: LocalEndpoint) -> None:
    """And what the loser had sent counts as sent."""
    local_endpoint.reset_stats()
    local_endpoint.add_fault(Fault(FaultKind.CRAWL, "UploadPart", skip=8, after_bytes=4 * MiB, bytes_per_s=5000))
    report = saved(local, {"w": random_tensor((60 * MiB,), torch.uint8)}, part_size=5 * MiB, hedge_share=0.5)
    assert report.hedges >= 1  # more on a machine that is busy
    assert report.retries == 0
    assert report.operations == local_endpoint.stats().requests
    assert report.sent_bytes > report.wanted_bytes + 4 * MiB


def test_a_trace_of_a_load_has_every_request(local: Place, local_endpoint: LocalEndpoint, tmp_path: Path) -> None:
    local.save(STATE)
    local_endpoint.reset_stats()
    local_endpoint.add_fault(Fault(FaultKind.ERROR, "GetObject", skip=2))
    with aiockpt.trace(tmp_path / "trace.json"):
        local.load(emptied(STATE))
    slices = [event for event in json.loads((tmp_path / "trace.json").read_text()) if event["ph"] == "X"]
    requests = [event for event in slices if "status" in event["args"]]
    served = local_endpoint.requests()
    assert Counter(asked(event["name"]) for event in requests) == Counter(
        (record.operation, record.key, record.range) for record in served
    )
    assert Counter(event["args"]["status"] for event in requests) == Counter(record.status for record in served)
    assert {event["args"]["attempt"] for event in requests} == {1, 2}
    received = sum(event["args"]["received_bytes"] for event in requests if event["args"]["status"] < 300)
    assert received == sum(record.body_bytes_out for record in served if record.status < 300)
    for track in {event["tid"] for event in requests}:
        spans = sorted((event["ts"], event["ts"] + event["dur"]) for event in requests if event["tid"] == track)
        assert all(start >= end - 1e-3 for (_, end), (start, _) in pairwise(spans))
    work = [event["name"] for event in slices if event["tid"] >= WORK_TRACK]
    assert work == [f"load {local.uri('ckpt')}", "plan", "transfer", "verify"]


def test_of_two_loads_at_once_each_counts_its_own(local: Place, local_endpoint: LocalEndpoint) -> None:
    states = {name: {"w": random_tensor((size * MiB,), torch.uint8)} for name, size in (("a", 12), ("b", 20))}
    for name, state in states.items():
        local.save(state, name)
    local_endpoint.reset_stats()
    readers = {name: local.reader(name) for name in states}
    threads = [threading.Thread(target=load, args=(emptied(states[name]), readers[name])) for name in states]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    served = local_endpoint.requests()
    for name, reader in readers.items():
        own = [record for record in served if record.key.startswith(f"{name}/")]
        assert reader.report is not None
        assert reader.report.requests == len(own)
        assert reader.report.received_bytes == sum(record.body_bytes_out for record in own)


def asked(name: str) -> tuple[str, str, str]:
    """Operation, key and Range header that a slice's name speaks of."""
    operation, key, span = re.fullmatch(r"(\w+) (\S+)(?: \[(.*)\))?", name).groups()  # type: ignore[union-attr]
    if span is None:
        return operation, key, ""
    start, end = span.split(", ")
    return operation, key, f"bytes={start}-{int(end) - 1}"
