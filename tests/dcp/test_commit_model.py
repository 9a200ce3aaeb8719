"""Saves, sweeps, deletions and loads at one path, interleaved request by request, against a model.

The protocol's own functions run on a store in memory. Each request waits until the machine lets it happen; a killed
actor's never do.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

from aiockpt.dcp import commit as room
from aiockpt.dcp.commit import Survey, commit, lost, replaced_data, survey, withdraw
from aiockpt.dcp.delete import delete_checkpoint
from aiockpt.dcp.metadata import dump_metadata, load_metadata
from aiockpt.dcp.rounds import Rounds
from aiockpt.dcp.sweep import sweep
from aiockpt.engine.engine import LoopEngine
from aiockpt.engine.standing import Conditions
from aiockpt.errors import NotFound, PreconditionFailed
from aiockpt.model import NOTHING, ObjectId, ObjectInfo, Replaces
from aiockpt.s3.control import ListedObject, ListedPart, PendingUpload

BASE = ObjectId("bucket", "run/ckpt")
METADATA = BASE / ".metadata"
START = datetime(2026, 1, 1, tzinfo=UTC)
GRACE = timedelta(hours=24)


class Turn(asyncio.Future[None]):
    """A request that waits until it may happen."""

    writes = False  # an object


@dataclass
class Actor:
    """Someone who sends requests."""

    kind: str
    began: datetime
    task: asyncio.Task[None] | None = None
    waiting: list[Turn] = field(default_factory=list)
    saw: int | None = None  # the save that stood when it first looked, of a save
    looked: bool = False
    surveyed: bool = False
    committed: bool = False
    stood: set[int | None] = field(default_factory=set)  # what stood at any time while it ran, of a load

    @property
    def at_work(self) -> bool:
        return self.task is not None and not self.task.done()


ACTOR: ContextVar[Actor] = ContextVar("actor")


class Store:
    """What the protocol needs of an engine, in memory, with conditional writes."""

    def __init__(self) -> None:
        self.now = START
        self.objects: dict[str, tuple[bytes, str, datetime]] = {}
        self.uploads: dict[str, tuple[str, datetime]] = {}
        self.save_of: dict[bytes, int] = {}  # by metadata
        self.commits = 0
        self.conditions = Conditions()
        self.conditions.asked(BASE.bucket)
        self._numbers = itertools.count(1)

    @property
    def standing(self) -> int | None:
        """The save whose metadata stand."""
        stored = self.objects.get(METADATA.key)
        return None if stored is None else self.save_of[stored[0]]

    async def request(self, *, writes: bool = False) -> None:
        actor = ACTOR.get()
        turn = Turn()
        turn.writes = writes
        actor.waiting.append(turn)
        await turn

    async def head(self, target: ObjectId) -> ObjectInfo:
        await self.request()
        actor = ACTOR.get()
        if not actor.looked:
            actor.saw, actor.looked = self.standing, True
        data, etag, _ = self._get(target)
        return ObjectInfo(len(data), etag)

    async def exists(self, target: ObjectId) -> bool:
        await self.request()
        return target.key in self.objects

    async def get_small(self, source: ObjectId) -> tuple[bytes, str]:
        await self.request()
        data, etag, _ = self._get(source)
        return data, etag

    async def list_objects(self, prefix: ObjectId, delimiter: str = "") -> AsyncIterator[ListedObject]:
        await self.request()
        for key, (data, etag, modified) in sorted(self.objects.items()):
            if key.startswith(prefix.key) and not (delimiter and delimiter in key[len(prefix.key) :]):
                yield ListedObject(key, len(data), etag, modified)

    async def pending_uploads(self, prefix: ObjectId) -> AsyncIterator[PendingUpload]:
        await self.request()
        for upload_id, (key, initiated) in sorted(self.uploads.items()):
            if key.startswith(prefix.key):
                yield PendingUpload(key, upload_id, initiated)

    async def upload_parts(self, target: ObjectId, upload_id: str) -> list[ListedPart]:
        await self.request()
        if upload_id not in self.uploads:
            raise NotFound("no such upload", code="NoSuchUpload")
        return [ListedPart(1, 1, self.uploads[upload_id][1])]

    async def bucket_url(self, bucket: str) -> str:
        return f"https://model/{bucket}/"

    async def service_time(self, bucket: str) -> datetime:
        await self.request()
        return self.now

    async def put(self, target: ObjectId, views: Sequence[bytes], replaces: Replaces) -> ObjectInfo:
        await self.request(writes=True)
        self._put(target, b"".join(views), replaces)
        data, etag, _ = self._get(target)
        return ObjectInfo(len(data), etag)

    async def delete(self, target: ObjectId, *, once: bool = False) -> None:
        await self.request()
        self.objects.pop(target.key, None)

    async def create_upload(self, target: ObjectId) -> str:
        await self.request()
        upload_id = f"u{next(self._numbers)}"
        self.uploads[upload_id] = target.key, self.now
        return upload_id

    async def complete(self, target: ObjectId, upload_id: str, data: bytes, replaces: Replaces) -> None:
        await self.request(writes=True)
        assert upload_id in self.uploads, "a running save's upload was aborted"
        self._put(target, data, replaces)
        del self.uploads[upload_id]

    async def abort_upload(self, target: ObjectId, upload_id: str) -> None:
        await self.request()
        self.uploads.pop(upload_id, None)

    def _get(self, target: ObjectId) -> tuple[bytes, str, datetime]:
        if target.key not in self.objects:
            raise NotFound(f"{target} is not there", code="NoSuchKey")
        return self.objects[target.key]

    def _put(self, target: ObjectId, data: bytes, replaces: Replaces) -> None:
        there = self.objects.get(target.key)
        if replaces.nothing and there is not None:
            raise PreconditionFailed(f"{target} is there")
        if replaces.etag and there is None:
            raise NotFound(f"{target} is not there", code="NoSuchKey")
        if replaces.etag and there is not None and there[1] != replaces.etag:
            raise PreconditionFailed(f"{target} is another")
        if target == METADATA:
            assert self.standing in {None, ACTOR.get().saw}, "replaced a checkpoint that it did not know"
            self.commits += 1
        self.objects[target.key] = data, f"e{next(self._numbers)}", self.now


def metadata_of(save: int, paths: Sequence[str]) -> bytes:
    places = {MetadataIndex(path): _StorageInfo(path, 0, 1) for path in paths}
    facts = {path: BytesStorageMetadata() for path in paths}
    return dump_metadata(Metadata(cast("Any", facts), planner_data=save, storage_data=places))


class CommitModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        room._committed._rows.clear()  # ETags begin anew with each store
        self.runner = asyncio.Runner()
        self.store = Store()
        self.engine = cast("LoopEngine", self.store)
        self.actors: list[Actor] = []
        self.saves = itertools.count(1)

    # ---- what actors do

    async def save(self, number: int, objects: int, ranks: int) -> None:
        """The coordinator's look at the metadata counts; then all ranks write, and then it commits, or has lost."""
        actor = ACTOR.get()
        prefixes = [f"__{rank}_" for rank in range(ranks)]
        found = [await survey(self.engine, METADATA, BASE / prefix) for prefix in prefixes]
        actor.surveyed = True
        replaced = await replaced_data(self.engine, found[0], METADATA)
        alone = ranks == 1
        try:
            parts = (
                self.write(prefix, each, number, objects, alone=alone)
                for prefix, each in zip(prefixes, found, strict=True)
            )
            names = [name for rank in await asyncio.gather(*parts) for name in rank]
            data = metadata_of(number, names)
            self.store.save_of[data] = number
            await commit(self.engine, found[0], METADATA, data, [(BASE / name).key for name in names], replaced)
        except PreconditionFailed:
            self.lost(number)
        else:
            actor.committed = True

    async def write(self, prefix: str, found: Survey, number: int, objects: int, *, alone: bool) -> list[str]:
        """A rank's objects, by rounds as ``S3StorageWriter`` makes them; every other one in parts."""
        rounds = Rounds(BASE, prefix)
        files = rounds.first([cast("Any", [turn]) for turn in range(objects)], found.next_number)
        stand: list[str] = []
        while files:
            taken = [file for file in files if not await self.stands(BASE / file.path, b"%d" % number, file.items[0])]
            stand += [file.path for file in files if file not in taken]
            if not taken:
                break
            now = await survey(self.engine, METADATA, BASE / prefix)
            if alone and found.lost_to(now):
                await withdraw(self.engine, METADATA, [(BASE / path).key for path in stand])
                raise lost(METADATA)
            files = rounds.again(taken, now.next_number)
        return stand

    async def stands(self, target: ObjectId, data: bytes, turn: object) -> bool:
        """Write an object; whether it stands, and not another."""
        if turn in {0, 2}:
            with suppress(PreconditionFailed):
                await self.store.put(target, [data], NOTHING)
                return True
            return False
        upload_id = await self.store.create_upload(target)
        try:
            await self.store.complete(target, upload_id, data, NOTHING)
        except PreconditionFailed:
            await self.store.abort_upload(target, upload_id)
            return False
        return True

    def lost(self, number: int) -> None:
        """Nothing of who loses stays; and it lost to somebody."""
        assert self.store.commits > 0
        assert not [key for key, (data, _, _) in self.store.objects.items() if data == b"%d" % number]

    async def sweep(self, *, grace: timedelta = GRACE) -> None:
        await sweep(self.engine, BASE, grace=grace)

    async def delete(self) -> None:
        try:
            await delete_checkpoint(self.engine, BASE)
        except (NotFound, PreconditionFailed):
            return

    async def load(self) -> None:
        """Whatever it finds is one save's, and one that stood while it looked."""
        try:
            data, _ = await self.store.get_small(METADATA)
            found = load_metadata(data, METADATA.uri)
            places = (found.storage_data or {}).values()
            contents = {(await self.store.get_small(BASE / place.relative_path))[0] for place in places}
        except NotFound:
            return
        assert contents == {b"%d" % self.store.save_of[data]}
        assert self.store.save_of[data] in ACTOR.get().stood

    # ---- rules

    def two_saves(self, objects: int, ranks: int) -> list[Actor]:
        """Two that have both looked what is there, before either has written anything."""
        for number in (1, 2):
            self.start("save", self.save(number, objects, ranks))
        while any(not actor.surveyed for actor in self.actors):
            actor = next(actor for actor in self.actors if not actor.surveyed)
            actor.waiting.pop(0).set_result(None)
            self.runner.run(self.settled())
        return list(self.actors)

    def happens(self, actor: Actor, turn: Turn) -> None:
        actor.waiting.remove(turn)
        turn.set_result(None)
        self.runner.run(self.settled())

    def writes_waiting(self) -> list[tuple[Actor, Turn]]:
        """What may be written next, after everything else has happened that can."""
        while others := [(who, turn) for who in self.actors for turn in who.waiting if not turn.writes]:
            self.happens(*others[0])
        return [(who, turn) for who in self.actors for turn in who.waiting]

    def start(self, kind: str, work: Coroutine[Any, Any, None]) -> None:
        actor = Actor(kind, self.store.now)
        self.actors.append(actor)

        async def begin() -> None:
            ACTOR.set(actor)
            actor.task = asyncio.create_task(work)

        self.runner.run(begin())
        self.runner.run(self.settled())

    async def settled(self) -> None:
        """Let everyone run until all wait for a request to happen, or have ended."""
        quiet = 0
        while quiet < 20:  # more than the steps of any task between two requests, after a thread's result has come
            await asyncio.sleep(0)
            working = [actor for actor in self.actors if actor.at_work]
            quiet = quiet + 1 if all(actor.waiting for actor in working) else 0
        for actor in self.actors:
            actor.stood.add(self.store.standing)
            if actor.task is not None and actor.task.done() and not actor.task.cancelled():
                actor.task.result()

    @initialize(objects=st.integers(1, 3), ranks=st.integers(1, 2), others=st.integers(0, 2))
    def begin(self, objects: int, ranks: int, others: int) -> None:
        for _ in range(1 + others):
            self.start("save", self.save(next(self.saves), objects, ranks))

    @rule(objects=st.integers(1, 3), ranks=st.integers(1, 2))
    @precondition(lambda self: sum(actor.at_work for actor in self.actors) < 4)
    def begin_save(self, objects: int, ranks: int) -> None:
        self.start("save", self.save(next(self.saves), objects, ranks))

    @rule(kind=st.sampled_from(["sweep", "delete", "load"]))
    @precondition(lambda self: sum(actor.at_work for actor in self.actors) < 4)
    def begin_other(self, kind: str) -> None:
        self.start(kind, getattr(self, kind)())

    @rule(which=st.integers(0, 3), requests=st.integers(1, 12), newest=st.booleans())
    def go_on(self, which: int, requests: int, newest: bool) -> None:
        for _ in range(requests):
            working = [actor for actor in self.actors if actor.waiting]
            if not working:
                return
            working[which % len(working)].waiting.pop(-1 if newest else 0).set_result(None)
            self.runner.run(self.settled())

    @rule(which=st.integers(0, 3))
    def go_on_to_its_end(self, which: int) -> None:
        working = [actor for actor in self.actors if actor.waiting]
        while working and (actor := working[which % len(working)]).waiting:
            actor.waiting.pop(0).set_result(None)
            self.runner.run(self.settled())

    @rule(which=st.integers(0, 3), sure=st.integers(0, 2))
    def kill(self, which: int, sure: int) -> None:
        working = [actor for actor in self.actors if actor.at_work]
        if working and not sure:
            self.end(working[which % len(working)])

    def end(self, actor: Actor) -> None:
        """Nothing of it happens any more, not even what it would do when it is cancelled."""
        actor.waiting.clear()
        self.actors.remove(actor)
        assert actor.task is not None
        actor.task.cancel()

        async def gone() -> None:
            while not actor.task.done():  # type: ignore[union-attr]
                for turn in actor.waiting:
                    turn.cancel()
                await asyncio.sleep(0)

        self.runner.run(gone())

    @rule(hours=st.sampled_from([1, 6, 25]))
    def time_passes(self, hours: int) -> None:
        """No save takes as long as the grace."""
        later = self.store.now + timedelta(hours=hours)
        for actor in [actor for actor in self.actors if actor.at_work]:
            if later - actor.began >= GRACE:
                self.end(actor)
        self.store.now = later

    @invariant()
    def what_stands_is_whole(self) -> None:
        standing = self.store.objects.get(METADATA.key)
        if standing is None:
            return
        places = (load_metadata(standing[0], METADATA.uri).storage_data or {}).values()
        contents = [self.store.objects.get((BASE / place.relative_path).key) for place in places]
        assert all(found is not None for found in contents)
        assert {found[0] for found in contents if found} == {str(self.store.standing).encode()}

    def teardown(self) -> None:
        """When nobody is at work, a sweep leaves the checkpoint and nothing else."""
        try:
            for actor in [actor for actor in self.actors if actor.at_work]:
                self.end(actor)
            self.leaves_nothing_else()
        finally:
            self.runner.close()

    def leaves_nothing_else(self) -> None:
        stood = self.store.standing
        self.start("sweep", self.sweep(grace=timedelta(0)))
        while any(actor.waiting for actor in self.actors):
            self.go_on(0, 1, newest=False)
        assert self.store.standing == stood
        assert self.store.uploads == {}
        refers: set[str] = set()
        if METADATA.key in self.store.objects:
            found = load_metadata(self.store.objects[METADATA.key][0], METADATA.uri)
            refers = {(BASE / place.relative_path).key for place in (found.storage_data or {}).values()}
        assert self.store.objects.keys() - {METADATA.key} == refers


CommitModel.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestCommit = CommitModel.TestCase


class Orders:
    """All orders of events, one after the other: depth first, by doing everything anew up to the last choice."""

    def __init__(self) -> None:
        self._choices: list[tuple[int, int]] = []  # which one of how many
        self._at = 0
        self.seen = 0

    def choose(self, options: int) -> int:
        if self._at == len(self._choices):
            self._choices.append((0, options))
        chosen, known = self._choices[self._at]
        assert known == options, "not the same when it is done anew"
        self._at += 1
        return chosen

    def has_another(self) -> bool:
        """Turn to the next order, if there is one."""
        self._at = 0
        self.seen += 1
        while self._choices:
            chosen, options = self._choices.pop()
            if chosen + 1 < options:
                self._choices.append((chosen + 1, options))
                return True
        return False


@pytest.mark.parametrize(
    ("objects", "ranks", "killed"), [(1, 1, False), (2, 1, False), (1, 2, False), (1, 1, True), (2, 1, True)]
)
def test_of_two_saves_at_the_same_moment_one_wins_in_every_order(objects: int, ranks: int, killed: bool) -> None:
    """Both have looked and found nothing; all orders of their writes. One may be killed at any of them."""
    orders = Orders()
    while True:
        model = CommitModel()
        try:
            one, other = model.two_saves(objects, ranks)
            may_be_killed = killed
            while options := model.writes_waiting():
                may_be_killed = may_be_killed and one.at_work
                which = orders.choose(len(options) + may_be_killed)
                if which < len(options):
                    model.happens(*options[which])
                else:
                    model.end(one)
                    may_be_killed = False
            model.what_stands_is_whole()
            assert model.store.commits == 1
            assert other.committed or one.committed or killed
            assert other.committed or model.store.standing == 1
            model.leaves_nothing_else()
        finally:
            model.runner.close()
        if not orders.has_another():
            break
    assert orders.seen > (20 if objects * ranks > 1 else 5)
