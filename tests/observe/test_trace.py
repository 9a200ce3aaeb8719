from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import aiockpt
from aiockpt.config import S3ClientConfig
from aiockpt.engine.download import Read
from aiockpt.engine.engine import LoopEngine
from aiockpt.model import ByteRange, MiB, ObjectId
from aiockpt.observe.exchange import Exchange
from aiockpt.observe.timeline import CONTROL_TRACK
from aiockpt.observe.trace import TraceFile
from aiockpt.testing import LocalEndpoint

TARGET = ObjectId("bucket", "key")
DATA = bytes(range(256)) * (20 * MiB // 256)


def request(key: str = "key") -> None:
    with Exchange("GetObject", ObjectId("bucket", key)):
        pass


def events_of(path: Path) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = json.loads(path.read_text())
    return events


def requests_in(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["ph"] == "X" and "status" in event["args"]]


@pytest.fixture
def engine(local_endpoint: LocalEndpoint, monkeypatch: pytest.MonkeyPatch) -> LoopEngine:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", local_endpoint.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", local_endpoint.secret_key)
    return LoopEngine(S3ClientConfig(endpoint_url=local_endpoint.url, part_size=5 * MiB))


async def test_every_request_of_the_endpoint_is_there(
    engine: LoopEngine, local_endpoint: LocalEndpoint, local_bucket: str, tmp_path: Path
) -> None:
    target = ObjectId(local_bucket, "a/key")
    memory = memoryview(bytearray(len(DATA)))
    with aiockpt.trace(tmp_path / "trace.json"):
        async with engine:
            await engine.put(target, [DATA])
            await engine.fetch_into([Read(target, ByteRange(0, len(DATA)), memory)])
            await engine.head(target)
    events = events_of(tmp_path / "trace.json")
    traced = requests_in(events)
    served = local_endpoint.requests()
    assert sorted(event["name"].split()[0] for event in traced) == sorted(record.operation for record in served)
    spans = {event["name"].partition("[")[2].rstrip(")") for event in traced if "[" in event["name"]}
    ranges = [record.range.removeprefix("bytes=").split("-") for record in served if record.range]
    asked = {f"{start}, {int(last) + 1}" for start, last in ranges}
    assert spans == asked
    assert {event["args"]["status"] for event in traced} == {200, 206}
    bulk = [event for event in traced if event["tid"] < CONTROL_TRACK]
    assert sum(event["args"]["received_bytes"] for event in bulk) == len(DATA)
    assert sum(event["args"]["sent_bytes"] for event in bulk) == len(DATA)
    no_overlaps(traced)
    assert {"requests in flight", "GET limit", "PUT limit"} <= {event["name"] for event in events}


def no_overlaps(traced: list[dict[str, Any]]) -> None:
    tracks: dict[int, list[tuple[float, float]]] = {}
    for event in traced:
        tracks.setdefault(event["tid"], []).append((event["ts"], event["ts"] + event["dur"]))
    for spans in tracks.values():
        for (_, end), (start, _) in pairwise(sorted(spans)):
            assert start >= end - 1e-3


def test_after_the_block_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with aiockpt.trace(path):
        request("inside")
        late = Exchange("GetObject", TARGET)
        late.__enter__()
    before = path.read_text()
    late.__exit__(None, None, None)
    request("outside")
    assert path.read_text() == before
    assert [event["name"] for event in requests_in(events_of(path))] == ["GetObject inside"]


def test_a_file_without_its_end_holds_what_was(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with aiockpt.trace(path):
        request()
        text = path.read_text()  # as if it had been killed here
    assert len(requests_in(json.loads(text + "]"))) == 1


def test_an_earlier_trace_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    for key in ("a much longer name than the other one has", "b"):
        with aiockpt.trace(path):
            request(key)
    assert [event["name"] for event in requests_in(events_of(path))] == ["GetObject b"]


def test_of_two_at_one_path_the_second_gets_a_name_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with aiockpt.trace(path):
        with aiockpt.trace(path):
            request()
        request()
    assert len(requests_in(events_of(path))) == 2
    assert len(requests_in(events_of(tmp_path / f"trace.{os.getpid()}.json"))) == 1


def test_a_path_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"), aiockpt.trace(tmp_path / "nowhere" / "trace.json"):
        pass


def test_a_full_disk_ends_the_trace_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    with aiockpt.trace("/dev/full"):
        request()
        request()
    (warning,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert "No space left" in warning.getMessage()


def test_threads_do_not_mix_their_events(tmp_path: Path) -> None:
    def many() -> None:
        for _ in range(200):
            request()

    path = tmp_path / "trace.json"
    with aiockpt.trace(path):
        threads = [threading.Thread(target=many) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(requests_in(events_of(path))) == 800


FORKING = """
import os, sys
import aiockpt
from aiockpt.model import ObjectId
from aiockpt.observe.exchange import Exchange
with aiockpt.trace(sys.argv[1]):
    with Exchange("GetObject", ObjectId("bucket", "parent")):
        pass
    if (child := os.fork()) == 0:
        with Exchange("GetObject", ObjectId("bucket", "child")):
            pass
        os._exit(0)
    os.waitpid(child, 0)
    with Exchange("GetObject", ObjectId("bucket", "parent")):
        pass
    print(child)
"""


def test_a_forked_child_writes_its_own(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    out = subprocess.run([sys.executable, "-c", FORKING, path], check=True, capture_output=True, text=True).stdout
    assert [event["name"] for event in requests_in(events_of(path))] == ["GetObject parent"] * 2
    unended = (tmp_path / f"trace.{out.strip()}.json").read_text()
    assert [event["name"] for event in requests_in(json.loads(unended + "]"))] == ["GetObject child"]


OF_PROCESS = """
import asyncio, os
from aiockpt.config import S3ClientConfig
from aiockpt.engine.engine import LoopEngine
from aiockpt.model import ObjectId
async def main():
    async with LoopEngine(S3ClientConfig(endpoint_url=os.environ["URL"])) as engine:
        await engine.exists(ObjectId("bucket", "key"))
for _ in range(2):
    asyncio.run(main())
"""


@pytest.mark.parametrize("folder", ["", "nowhere"])
def test_the_environment_asks_for_one(local_endpoint: LocalEndpoint, tmp_path: Path, folder: str) -> None:
    path = tmp_path / folder / "trace.json"
    environ = {**os.environ, **local_endpoint.environ(), "URL": local_endpoint.url, "AIOCKPT_TRACE": str(path)}
    done = subprocess.run([sys.executable, "-c", OF_PROCESS], env=environ, check=True, capture_output=True, text=True)
    assert done.stderr == ""
    assert path.exists() == (not folder)
    if not folder:
        names = [event["name"].split()[0] for event in requests_in(events_of(path))]
        assert names.count("HeadObject") == 2


def test_a_trace_file_is_closed_once(tmp_path: Path) -> None:
    file = TraceFile(tmp_path / "trace.json")
    file.close()
    file.close()
    file.gauged("limit", 3)
    assert [event["ph"] for event in events_of(tmp_path / "trace.json")] == ["M"]
