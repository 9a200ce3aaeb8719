"""What a sweep removes and what it leaves, on the local endpoint and on servers that nobody here wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import WriteItem

from aiockpt.blocking.store import Store
from aiockpt.config import S3ClientConfig
from aiockpt.dcp import HexPrefixStrategy, commit
from aiockpt.dcp import sweep as room
from aiockpt.dcp.sweep import Swept, sweep
from aiockpt.engine.engine import LoopEngine
from aiockpt.errors import AccessDenied, NotFound
from aiockpt.model import MiB, ObjectId
from aiockpt.s3.control import ListedPart
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from dcp.checkpoints import Place, emptied, failure, same_bits

STATE = {"w": torch.arange(100.0), "n": {"b": torch.ones(3, 5)}}
NOW = timedelta(0)


def swept(place: Place, name: str = "ckpt", **kwargs: Any) -> Swept:
    store = Store(S3ClientConfig(**place.settings), place.server.region)
    return store.run(lambda engine: sweep(engine, ObjectId(place.bucket, name), **kwargs))


def removed(result: Swept) -> list[str]:
    return [verdict.remnant.key for verdict in result.removed]


def kept(result: Swept) -> list[str]:
    return [verdict.remnant.key for verdict in result.kept]


def begin_upload(place: Place, key: str, parts: int = 1) -> str:
    """A multipart upload as a killed writer leaves it."""
    upload_id: str = place.client.create_multipart_upload(Bucket=place.bucket, Key=key)["UploadId"]
    for number in range(1, parts + 1):
        place.client.upload_part(
            Bucket=place.bucket, Key=key, UploadId=upload_id, PartNumber=number, Body=bytes(5 * MiB)
        )
    return upload_id


@pytest.fixture
def local(local: Place) -> Iterator[Place]:
    """Without uploads at the end: other tests count those of all buckets."""
    yield local
    for row in local.client.list_multipart_uploads(Bucket=local.bucket).get("Uploads", ()):
        local.client.abort_multipart_upload(Bucket=local.bucket, Key=row["Key"], UploadId=row["UploadId"])


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """Lets time pass, for the service."""
    real = LoopEngine.service_time

    def passed(time: timedelta) -> None:
        async def later(engine: LoopEngine, bucket: str) -> datetime | None:
            now = await real(engine, bucket)
            assert now is not None
            return now + time

        monkeypatch.setattr(LoopEngine, "service_time", later)

    return passed


def test_elsewhere(foreign: Place, wait: Callable[[timedelta], None]) -> None:
    place = foreign
    assert swept(place, "") == Swept([], [])
    place.save(STATE, prefix_strategy=HexPrefixStrategy(epoch_num=1))
    standing = place.keys()
    others = ["ckpt/notes.txt", "ckpt/model.safetensors", "ckpt2/__0_0.distcp", "ckpt/x.metadata"]
    left = ["ckpt/__0_7.distcp", "ckpt/0000000000/epoch_1/__0_1.distcp", "ckpt/a/b c/é+%/mine-3.distcp"]
    for key in [*others, *left]:
        place.put(key, b"x")
    begin_upload(place, "ckpt/__0_8.distcp")
    begin_upload(place, "ckpt/__0_9.distcp", parts=0)
    begin_upload(place, "ckpt/movie.mp4", parts=0)

    wait(timedelta(hours=23))
    result = swept(place)
    assert (removed(result), sorted(kept(result))) == ([], sorted([*left, "ckpt/__0_8.distcp", "ckpt/__0_9.distcp"]))
    wait(timedelta(hours=25))
    planned = swept(place, dry_run=True)
    assert place.keys() == sorted([*standing, *others, *left])
    result = swept(place)
    assert removed(result) == removed(planned)
    assert sorted(removed(result)) == sorted([*left, "ckpt/__0_8.distcp", "ckpt/__0_9.distcp"])
    assert (kept(result), result.nbytes) == ([], 5 * MiB + 3)
    assert place.keys() == sorted([*standing, *others])
    assert place.uploads() == ["ckpt/movie.mp4"]
    assert same_bits(place.load(emptied(STATE)), STATE)
    assert swept(place) == Swept([], [])


def test_steps_of_a_run_are_swept_each_for_itself(
    local: Place, wait: Callable[[timedelta], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    local.save(STATE, "run/step-1")
    for step in (2, 3, 4):
        local.put(f"run/step-{step}/__0_0.distcp", b"x")
    begin_upload(local, "run/step-2/__0_1.distcp", parts=0)
    wait(timedelta(hours=30))
    begin_upload(local, "run/step-3/__1_0.distcp")
    part_came(timedelta(hours=29), "run/step-3/__1_0.distcp", monkeypatch)
    result = swept(local, "run")
    assert removed(result) == ["run/step-2/__0_1.distcp", "run/step-2/__0_0.distcp", "run/step-4/__0_0.distcp"]
    assert kept(result) == ["run/step-3/__1_0.distcp", "run/step-3/__0_0.distcp"]
    whole = swept(local, "")
    assert (removed(whole), kept(whole)) == ([], kept(result))
    assert same_bits(local.load(emptied(STATE), "run/step-1"), STATE)


def part_came(later: timedelta, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the last part of a pending upload had come so much later."""
    real = LoopEngine.upload_parts

    async def parts(engine: LoopEngine, target: ObjectId, upload_id: str) -> Any:
        rows = await real(engine, target, upload_id)
        times = [type(row)(row.number, row.size, row.last_modified and row.last_modified + later) for row in rows]
        return times if target.key == key else rows

    monkeypatch.setattr(LoopEngine, "upload_parts", parts)


def test_what_metadata_of_ranks_and_unfinished_ones_refer_to(local: Place) -> None:
    local.save(STATE)
    for name in ("__0.metadata", ".metadata.tmp"):
        local.put(f"ranks/{name}", local.get("ckpt/.metadata"))
        local.put("ranks/__0_0.distcp", b"x")
        assert swept(local, "ranks", grace=NOW) == Swept([], [])
        local.client.delete_object(Bucket=local.bucket, Key=f"ranks/{name}")
    assert removed(swept(local, "ranks", grace=NOW)) == ["ranks/__0_0.distcp"]


def test_what_metadata_further_up_refer_to(local: Place) -> None:
    local.save(STATE, "run/ckpt", prefix_strategy=HexPrefixStrategy(epoch_num=2))
    local.put("run/ckpt/0000000000/__9_0.distcp", b"x")
    assert removed(swept(local, "run/ckpt/0000000000", grace=NOW)) == ["run/ckpt/0000000000/__9_0.distcp"]
    assert swept(local, "run/ckpt/0000000000/epoch_2/", grace=NOW) == Swept([], [])
    assert same_bits(local.load(emptied(STATE), "run/ckpt"), STATE)


@pytest.mark.parametrize("where", ["ckpt/.metadata", "ckpt/__0.metadata", ".metadata", "ckpt/.metadata.tmp"])
def test_metadata_that_cannot_be_read_protect_what_is_below(local: Place, where: str) -> None:
    local.put(where, b"damaged")
    local.put("ckpt/__0_0.distcp", b"x")
    result = swept(local, grace=NOW)
    assert (removed(result), kept(result)) == ([], ["ckpt/__0_0.distcp"])
    assert f"{where} may refer to it" in result.kept[0].reason


def test_a_folder_above_that_may_not_be_looked_at_protects_all(local: Place, local_endpoint: LocalEndpoint) -> None:
    local.put("ckpt/__0_0.distcp", b"x")
    begin_upload(local, "ckpt/__0_1.distcp")
    denied = Fault(FaultKind.ERROR, "ListObjectsV2", status=403, code="AccessDenied", skip=3, count=None)
    local_endpoint.add_fault(denied)  # all but ckpt/ itself, which takes three requests
    result = swept(local, grace=NOW, dry_run=True)
    assert removed(result) == ["ckpt/__0_1.distcp"]
    assert ".metadata may refer to it, and cannot be read: LIST" in result.kept[0].reason


def test_a_commit_between_the_looks_is_seen(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    local.save(STATE)
    local.put("late/__0_0.distcp", local.get("ckpt/__0_0.distcp"))
    begin_upload(local, "late/__0_1.distcp")
    metadata = local.get("ckpt/.metadata")
    real = room._look
    looks = 0

    async def look(*arguments: Any) -> Any:
        nonlocal looks
        looks += 1
        found = await real(*arguments)
        if looks == 1:
            local.put("late/.metadata", metadata)
        return found

    monkeypatch.setattr(room, "_look", look)
    assert removed(swept(local, "late", grace=NOW)) == ["late/__0_1.distcp"]
    assert looks == 2
    assert same_bits(local.load(emptied(STATE), "late"), STATE)


def test_a_commit_while_it_lists_is_seen(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata come before data in a listing, so they are looked for again behind it."""
    local.save(STATE)
    local.put("late/__0_0.distcp", local.get("ckpt/__0_0.distcp"))
    metadata = local.get("ckpt/.metadata")
    real = room._objects

    async def objects(*arguments: Any) -> Any:
        found = await real(*arguments)
        local.put("late/.metadata", metadata)
        return found

    monkeypatch.setattr(room, "_objects", objects)
    assert swept(local, "late", grace=NOW) == Swept([], [])


def test_a_service_without_a_clock(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nobody_knows(engine: LoopEngine, bucket: str) -> None:
        return None

    monkeypatch.setattr(LoopEngine, "service_time", nobody_knows)
    local.put("ckpt/__0_0.distcp", b"x")
    assert "what time it is" in swept(local).kept[0].reason
    assert removed(swept(local, grace=NOW)) == ["ckpt/__0_0.distcp"]


def test_an_upload_that_ends_meanwhile(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    upload_id = begin_upload(local, "ckpt/__0_0.distcp")
    real = LoopEngine.upload_parts

    async def parts(engine: LoopEngine, target: ObjectId, upload: str) -> Any:
        local.client.abort_multipart_upload(Bucket=local.bucket, Key=target.key, UploadId=upload_id)
        return await real(engine, target, upload)

    monkeypatch.setattr(LoopEngine, "upload_parts", parts)
    assert swept(local, grace=NOW) == Swept([], [])


def test_an_upload_of_which_the_service_knows_nothing_any_more(local: Place, local_endpoint: LocalEndpoint) -> None:
    """Some stores answer 500 about an aborted one. It may as well be a running writer's: in doubt it stays."""
    begin_upload(local, "ckpt/__0_0.distcp")
    fault = Fault(FaultKind.ERROR, "ListParts", count=None, status=500, code="InternalError")
    local_endpoint.add_fault(fault)
    settings = {**local.settings, "max_attempts": 2, "backoff_base_s": 0.001}
    store, path = Store(S3ClientConfig(**settings), local.server.region), ObjectId(local.bucket, "ckpt")
    (verdict,) = store.run(lambda engine: sweep(engine, path)).kept
    assert "does not say how old" in verdict.reason
    assert removed(store.run(lambda engine: sweep(engine, path, grace=NOW))) == ["ckpt/__0_0.distcp"]
    assert local.uploads() == []


def test_an_upload_whose_parts_have_no_time_is_as_old_as_nobody_knows(
    local: Place, wait: Callable[[timedelta], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_upload(local, "ckpt/__0_0.distcp")
    wait(timedelta(hours=30))
    real = LoopEngine.upload_parts

    async def parts(engine: LoopEngine, target: ObjectId, upload_id: str) -> Any:
        return [ListedPart(row.number, row.size, None) for row in await real(engine, target, upload_id)]

    monkeypatch.setattr(LoopEngine, "upload_parts", parts)
    (verdict,) = swept(local).kept
    assert "does not say how old" in verdict.reason
    assert removed(swept(local, grace=NOW)) == ["ckpt/__0_0.distcp"]


class StoppedPlanner(DefaultSavePlanner):
    """Stops the save when its first object stands, and does something before it goes on."""

    def __init__(self, place: Place, meanwhile: Callable[[], None]) -> None:
        super().__init__()
        self._place = place
        self._meanwhile: Callable[[], None] | None = meanwhile
        self._standing = len(place.keys())

    def resolve_data(self, write_item: WriteItem) -> Any:
        if write_item.index.fqn == "small" and self._meanwhile is not None:
            while len(self._place.keys()) == self._standing:
                pass
            self._meanwhile()
            self._meanwhile = None
        return super().resolve_data(write_item)


LARGE = {"large": torch.ones(5 * MiB + 1, dtype=torch.uint8), "small": torch.ones(3)}


@pytest.mark.parametrize("clock", [0, 1])
def test_who_was_stopped_and_swept_cannot_commit(
    local: Place, wait: Callable[[timedelta], None], monkeypatch: pytest.MonkeyPatch, clock: int
) -> None:
    """Whichever of its clocks shows that it was stopped."""
    local.save(STATE)
    before = local.keys()

    def meanwhile() -> None:
        now = [reading + 30 * 3600 * (clock == number) for number, reading in enumerate(commit.readings())]
        monkeypatch.setattr(commit, "readings", lambda: tuple(now))
        wait(timedelta(hours=30))
        assert removed(swept(local)) == ["ckpt/__0_1.distcp"]

    planner = StoppedPlanner(local, meanwhile)
    with pytest.raises(CheckpointException) as caught:
        local.save(LARGE, planner=planner, thread_count=2, part_size=5 * MiB, overwrite=True)
    error = failure(caught.value)
    assert isinstance(error, NotFound)
    assert "1 of 2 data objects of this save are gone" in str(error)
    assert "ckpt/__0_1.distcp" in str(error)
    assert "a longer grace" in str(error)
    assert set(local.keys()) == {*before, "ckpt/__0_2.distcp"}
    assert same_bits(local.load(emptied(STATE)), STATE)
    assert removed(swept(local, grace=NOW)) == ["ckpt/__0_2.distcp"]


def test_who_was_stopped_and_not_swept_commits(
    local: Place, local_endpoint: LocalEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile() -> None:
        later = commit.readings()[0] + commit.LONG_S
        monkeypatch.setattr(commit, "readings", lambda: (later, 0.0))
        local_endpoint.reset_stats()

    planner = StoppedPlanner(local, meanwhile)
    local.save(LARGE, planner=planner, thread_count=2, part_size=5 * MiB)
    assert same_bits(local.load(emptied(LARGE)), LARGE)
    looks = [record for record in local_endpoint.requests() if record.operation == "ListObjectsV2"]
    assert len(looks) == 1


def test_refusals(local: Place, local_endpoint: LocalEndpoint) -> None:
    with pytest.raises(ValueError, match="zero or more"):
        swept(local, grace=timedelta(seconds=-1))
    with pytest.raises(NotFound, match="no-such-bucket"):
        swept(Place(local.server, "no-such-bucket"))
    assert swept(local, "nothing/here") == Swept([], [])
    local.put("ckpt/__0_0.distcp", b"x")
    local_endpoint.add_fault(Fault(FaultKind.ERROR, "DeleteObject", status=403, code="AccessDenied", count=None))
    with pytest.raises(AccessDenied, match="ckpt/__0_0"):
        swept(local, grace=NOW)
