from __future__ import annotations

import asyncio
import copy
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from aiockpt.blocking.store import Lease, Store, Threads
from aiockpt.config import S3ClientConfig
from aiockpt.engine.engine import LoopEngine
from aiockpt.errors import NotFound, PreconditionFailed
from aiockpt.model import NOTHING, ObjectId
from aiockpt.s3.control import ListedObject
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from blocking.conftest import one_or_two_threads, open_uploads


def test_making_one_asks_nobody() -> None:
    store = Store(S3ClientConfig(endpoint_url="http://no-such-host.invalid"), "no-such-region")
    assert pickle.loads(pickle.dumps(store)) == store
    assert copy.deepcopy(store) == store


def test_objects(store: Store, local_bucket: str) -> None:
    target = ObjectId(local_bucket, "a/key")
    info = store.put(target, b"data")
    assert store.head(target) == info
    assert store.exists(target)
    assert store.get_small(target) == b"data"
    store.copy(target, ObjectId(local_bucket, "b"))
    rows = store.list_objects(ObjectId(local_bucket, ""), "/")
    assert [row if isinstance(row, str) else row.key for row in rows] == ["a/", "b"]
    assert [type(row) for row in rows] == [str, ListedObject]
    with pytest.raises(PreconditionFailed):
        store.put(target, b"other", NOTHING)
    store.delete(target)
    assert not store.exists(target)
    with pytest.raises(NotFound):
        store.head(target)


def test_equal_settings_share_an_engine(store: Store, config: S3ClientConfig) -> None:
    with store.lease() as first, Store(config).lease() as second, Store(config, "eu-west-3").lease() as third:
        assert first.engine is second.engine is not third.engine
        assert first.bridge is third.bridge


@one_or_two_threads
def test_many_threads(store: Store, local_bucket: str) -> None:
    outcomes: list[bytes] = []

    def there_and_back(number: int) -> None:
        target = ObjectId(local_bucket, f"k{number}")
        store.put(target, bytes([number]))
        outcomes.append(store.get_small(target))

    threads = [threading.Thread(target=there_and_back, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [bytes([number]) for number in range(12)]


def test_work_on_the_loop(store: Store, local_bucket: str) -> None:
    async def both(engine: LoopEngine) -> list[bool]:
        return await asyncio.gather(*(engine.exists(ObjectId(local_bucket, key)) for key in "ab"))

    assert store.run(both) == [False, False]
    assert store.start(both).result() == [False, False]


def script(
    source: str, endpoint: LocalEndpoint, bucket: str, loop_threads: int = 1
) -> subprocess.CompletedProcess[str]:
    """Run a program with a ``store``, a ``bucket`` and some data."""
    opening = f"""
        import os, signal, sys, threading, time
        from aiockpt.blocking.store import Store
        from aiockpt.blocking.writing import S3Writer
        from aiockpt.blocking.reading import ObjectStream
        from aiockpt.config import S3ClientConfig
        from aiockpt.model import MiB, ObjectId
        store = Store(S3ClientConfig(endpoint_url={endpoint.url!r}, part_size=5 * MiB, loop_threads={loop_threads}))
        bucket = {bucket!r}
    """
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(opening) + textwrap.dedent(source)],
        env={**os.environ, **endpoint.environ()},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def assert_quiet(done: subprocess.CompletedProcess[str], said: str = "") -> None:
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, said.split(), "")


@one_or_two_threads
def test_exit_during_an_upload_leaves_nothing_behind(
    store: Store, local_endpoint: LocalEndpoint, local_bucket: str, loop_threads: int
) -> None:
    done = script(
        """
        import aiockpt.engine.multipart as multipart, aiockpt.engine.upload as upload
        multipart.ABORT_TIMEOUT_S = upload.ABORT_TIMEOUT_S = 30.0  # a busy machine may need more than its second
        writer = S3Writer(store, ObjectId(bucket, "key"))
        for _ in range(30):
            writer.write(bytes(MiB))
        keep = [writer]  # in use to the very end
        """,
        local_endpoint,
        local_bucket,
        loop_threads,
    )
    assert done.returncode == 0
    assert not store.exists(ObjectId(local_bucket, "key"))
    assert open_uploads(store, local_bucket) == 0


@one_or_two_threads
def test_ctrl_c_during_an_upload_leaves_nothing_behind(
    store: Store, local_endpoint: LocalEndpoint, local_bucket: str, loop_threads: int
) -> None:
    local_endpoint.add_fault(Fault(FaultKind.STALL, "UploadPart", count=None, after_bytes=1000))
    done = script(
        """
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        begun = time.monotonic()
        try:
            store.put(ObjectId(bucket, "key"), bytes(12 * MiB))
        except KeyboardInterrupt:
            print("interrupted", time.monotonic() - begun < 3)
        """,
        local_endpoint,
        local_bucket,
        loop_threads,
    )
    assert_quiet(done, "interrupted True")
    local_endpoint.clear_faults()
    assert open_uploads(store, local_bucket) == 0


@one_or_two_threads
def test_a_forked_child_builds_its_own(local_endpoint: LocalEndpoint, local_bucket: str, loop_threads: int) -> None:
    """Whatever the parent had open stays the parent's, and is let go without a word."""
    done = script(
        """
        target = ObjectId(bucket, "key")
        store.put(target, bytes(40 * MiB))
        stream = ObjectStream(store, target)
        next(stream)
        writer = S3Writer(store, ObjectId(bucket, "written"))
        writer.write(b"parent")
        child = os.fork()
        if not child:
            del stream, writer
            assert store.head(target).size == 40 * MiB
            store.put(ObjectId(bucket, "child"), b"child")
            sys.exit(7)
        assert os.waitpid(child, 0)[1] == 7 << 8
        assert sum(map(len, stream)) == 36 * MiB
        writer.close()
        assert store.get_small(ObjectId(bucket, "written")) == b"parent"
        assert store.get_small(ObjectId(bucket, "child")) == b"child"
        """,
        local_endpoint,
        local_bucket,
        loop_threads,
    )
    assert_quiet(done)


@one_or_two_threads
def test_what_a_forked_child_has_of_its_parent_fails_at_once(
    local_endpoint: LocalEndpoint, local_bucket: str, loop_threads: int
) -> None:
    """A stream whose next chunk has not come, and a writer that waits for staging memory, would wait for ever."""
    local_endpoint.add_fault(Fault(FaultKind.STALL, "GetObject", count=None, after_bytes=0))
    local_endpoint.add_fault(Fault(FaultKind.LATE, "UploadPart", skip=20, count=None, delay_s=60))
    done = script(
        """
        from aiockpt.errors import ClosedError
        target = ObjectId(bucket, "key")
        store.put(target, bytes(100 * MiB))
        stream = ObjectStream(store, target)
        reading = threading.Thread(target=lambda: next(stream, None), daemon=True)
        reading.start()
        while len(stream._ahead) < 8:
            time.sleep(0.001)
        small = Store(store.config.merged(memory_bytes=16 * MiB))
        writer = S3Writer(small, ObjectId(bucket, "written"))
        writer.write(bytes(12 * MiB))
        child = os.fork()
        if not child:
            for use in (lambda: next(stream), lambda: writer.write(bytes(64 * MiB))):
                try:
                    use()
                except ClosedError as error:
                    assert "forked" in str(error)
                else:
                    os._exit(1)
            os._exit(7)
        status = os.waitpid(child, 0)[1]
        print(status >> 8)
        sys.stdout.flush()
        os._exit(0)
        """,
        local_endpoint,
        local_bucket,
        loop_threads,
    )
    assert done.stdout == "7\n", done.stderr


def test_cpu_time_of_threads_is_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of threads whose name only begins alike; those that serve the first have a number behind it."""
    spent = {"background-1": 1.0, "background-1-2": 2.0, "background-19": 40.0, "background-19-2": 80.0, "loop": 160.0}
    monkeypatch.setattr("aiockpt.blocking.store.loop_cpu_s", lambda: spent)
    monkeypatch.setattr("aiockpt.blocking.store.time.thread_time", lambda: 0.5)
    assert Threads("background-1").cpu_s() == 3.5
    assert Threads("background-19").cpu_s() == 120.5


def test_the_pace_of_an_upload_does_not_count_what_the_engine_took_to_build(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    lease = Store.lease

    @contextmanager
    def noted_lease(self: Store) -> Iterator[Lease]:
        with lease(self) as held:
            order.append("engine")
            yield held

    def noted_pauses(_: Threads) -> Callable[[], float]:
        order.append("pace")
        return lambda: 0.0

    monkeypatch.setattr(Store, "lease", noted_lease)
    monkeypatch.setattr(Threads, "pauses", noted_pauses)
    with store.upload():
        pass
    assert order == ["engine", "pace"]
