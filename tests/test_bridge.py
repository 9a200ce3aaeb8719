from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from aiockpt import bridge as room
from aiockpt.bridge import Bridge, get_bridge
from aiockpt.errors import ClosedError, WrongThreadError
from aiockpt.scope import Cancellable, Scope


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    made = Bridge()
    yield made
    made.close()


def script(source: str, *, timeout_s: float = 20.0) -> subprocess.CompletedProcess[str]:
    """Run a program of its own."""
    return subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(source)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def assert_quiet(done: subprocess.CompletedProcess[str], said: str = "") -> None:
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, said.split(), "")


async def forever() -> None:
    await asyncio.Event().wait()


async def value(result: int) -> int:
    await asyncio.sleep(0)
    return result


class Work:
    """A coroutine that tells where it is, and how it ended."""

    def __init__(self) -> None:
        self.running = threading.Event()
        self.ended = threading.Event()

    async def __call__(self) -> None:
        self.running.set()
        try:
            await forever()
        finally:
            await asyncio.sleep(0)  # winding up takes its time
            self.ended.set()


def test_results(bridge: Bridge) -> None:
    assert bridge.run(lambda: value(3)) == 3
    call = bridge.start(lambda: value(4))
    assert call.wait()
    assert call.done
    assert call.result() == 4


def test_errors_come_as_they_are(bridge: Bridge) -> None:
    async def fail() -> None:
        raise LookupError("here")

    with pytest.raises(LookupError, match="here"):
        bridge.run(fail)


def test_work_that_is_no_coroutine_is_an_error_and_no_hang(bridge: Bridge) -> None:
    def broken() -> Coroutine[Any, Any, None]:
        raise LookupError("before there is a coroutine")

    with pytest.raises(LookupError):
        bridge.run(broken)
    with pytest.raises(TypeError):
        bridge.run(lambda: 3)  # type: ignore[arg-type,return-value]


def test_two_threads(bridge: Bridge) -> None:
    met = [asyncio.Event(), asyncio.Event()]

    async def meet(own: int) -> None:
        met[own].set()
        await met[1 - own].wait()

    threads = [threading.Thread(target=bridge.run, args=(lambda own=own: meet(own),)) for own in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


def test_cancel(bridge: Bridge) -> None:
    work = Work()
    call = bridge.start(work)
    work.running.wait()
    assert not call.wait(0)
    call.cancel()
    assert call.wait()
    assert work.ended.is_set()
    with pytest.raises(ClosedError):
        call.result()


@pytest.mark.parametrize(
    "blocking",
    [
        lambda bridge: bridge.run(lambda: value(1)),
        lambda bridge: bridge.close(),
        lambda bridge: bridge.start(lambda: value(1)).result(),
        lambda bridge: bridge.lease("key", resource([])).__enter__(),
    ],
)
def test_a_blocking_call_on_the_loop_thread_is_refused(bridge: Bridge, blocking: Callable[[Bridge], Any]) -> None:
    async def call() -> None:
        blocking(bridge)

    with pytest.raises(WrongThreadError, match="another thread"):
        bridge.run(call)


def test_a_wait_on_the_loop_thread_returns_at_once(bridge: Bridge) -> None:
    """Where the garbage collector runs a destructor that winds up: anywhere."""

    async def wait() -> bool:
        call = bridge.start(forever)
        call.cancel()
        return call.wait()

    assert bridge.run(wait) is False


def test_close(bridge: Bridge) -> None:
    work = Work()
    call = bridge.start(work)
    work.running.wait()
    bridge.close()
    assert work.ended.is_set()
    with pytest.raises(ClosedError):
        call.result()
    for late in (lambda: bridge.run(lambda: value(1)), lambda: bridge.start(lambda: value(1))):
        with pytest.raises(ClosedError, match="stopped"):
            late()
    bridge.close()
    assert "aiockpt-loop" not in {thread.name for thread in threading.enumerate() if thread is bridge._thread}


def test_whoever_calls_while_it_closes_is_told() -> None:
    for _ in range(10):
        bridge = Bridge()
        outcomes: list[object] = []

        def call(bridge: Bridge = bridge, outcomes: list[object] = outcomes) -> None:
            try:
                while True:
                    bridge.run(lambda: value(1))
            except BaseException as error:  # noqa: BLE001  # whatever it is
                outcomes.append(type(error))

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        bridge.close()
        for thread in threads:
            thread.join(5)
        assert outcomes == [ClosedError] * 4


@pytest.mark.filterwarnings("ignore:Exception in thread aiockpt-loop")
def test_a_loop_that_breaks_ends_every_wait(bridge: Bridge) -> None:
    blocked, go_on = threading.Event(), threading.Event()

    async def breaks() -> None:
        blocked.set()
        go_on.wait()
        bridge._loop.stop()

    bridge.start(breaks)
    blocked.wait()
    late = bridge.start(lambda: value(1))
    go_on.set()
    assert late.wait(5)
    with pytest.raises(ClosedError):
        late.result()


# ---- leases


class Resource:
    def __init__(self, log: list[str]) -> None:
        self.log = log


def resource(log: list[str]) -> Callable[[], AbstractAsyncContextManager[Resource]]:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Resource]:
        task = asyncio.current_task()
        log.append("open")
        yield Resource(log)
        assert asyncio.current_task() is task
        log.append("close")

    return opened


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # timers of the loop are waited for
        await asyncio.sleep(0.001)


def test_leases_are_shared(bridge: Bridge) -> None:
    log: list[str] = []
    with bridge.lease("key", resource(log)) as first, bridge.lease("key", resource(log)) as second:
        assert first is second
        with bridge.lease("other", resource(log)) as third:
            assert third is not first
    with bridge.lease("key", resource(log)) as again:
        assert again is first

    async def hold() -> Resource:
        async with bridge.hold("key", resource(log)) as held:
            return held

    assert bridge.run(hold) is first
    assert log == ["open", "open"]
    bridge.close()
    assert log == ["open", "open", "close", "close"]


def test_leases_expire(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LINGER_S", 0.01)
    log: list[str] = []
    with bridge.lease("key", resource(log)) as first:
        pass
    bridge.run(lambda: until(lambda: log == ["open", "close"]))
    assert not bridge._resources
    with bridge.lease("key", resource(log)) as second:
        assert second is not first
        with bridge.lease("key", resource(log)):
            pass
        bridge.run(lambda: asyncio.sleep(0.05))  # well past the time to linger
        assert log == ["open", "close", "open"]


class Shut:
    """A resource that does not open."""

    def __init__(self, after: asyncio.Event | None = None) -> None:
        self._after = after

    async def __aenter__(self) -> Resource:
        if self._after is not None:
            await self._after.wait()
        raise LookupError("shut")

    async def __aexit__(self, *exc: object) -> None: ...


def test_a_resource_that_does_not_open_is_tried_again(bridge: Bridge) -> None:
    log: list[str] = []
    for _ in range(2):
        with pytest.raises(LookupError, match="shut"), bridge.lease("key", Shut):
            raise AssertionError
    with bridge.lease("key", resource(log)):
        assert log == ["open"]


def test_a_failed_opening_takes_no_lease_of_its_successor(bridge: Bridge) -> None:
    """Two wait for an opening that fails; the first of them opens anew before the second hears of it."""
    log: list[str] = []

    async def scene() -> int:
        entered = asyncio.Event()

        async def first() -> None:
            with pytest.raises(LookupError):
                await bridge._acquire("key", lambda: Shut(entered))
            await bridge._acquire("key", resource(log))

        async def second() -> None:
            with pytest.raises(LookupError):
                await bridge._acquire("key", lambda: Shut(entered))
            await asyncio.sleep(0)

        tasks = [asyncio.ensure_future(first()), asyncio.ensure_future(second())]
        await asyncio.sleep(0)
        entered.set()
        await asyncio.gather(*tasks)
        return bridge._resources["key"].leases

    assert bridge.run(scene) == 1


# ---- processes


def test_one_bridge_a_process() -> None:
    assert get_bridge() is get_bridge()


def test_ctrl_c_cancels_and_waits_for_the_end() -> None:
    done = script("""
        import asyncio, os, signal, threading
        from aiockpt.bridge import get_bridge

        async def work():
            os.kill(os.getpid(), signal.SIGINT)
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.05)
                print("ended")

        try:
            get_bridge().run(work)
        except KeyboardInterrupt:
            print("interrupted")
    """)
    assert_quiet(done, "ended interrupted")


@pytest.mark.parametrize("state", ["never", "idle", "leased", "busy"])
def test_a_forked_child_has_a_bridge_of_its_own(state: str) -> None:
    done = script(f"""
        import asyncio, os, sys, threading
        from contextlib import asynccontextmanager
        from aiockpt.bridge import get_bridge

        async def work():
            return os.getpid()

        @asynccontextmanager
        async def resource():
            yield os.getpid()

        state = {state!r}
        if state != "never":
            get_bridge().run(work)
        if state == "leased":
            with get_bridge().lease("key", resource) as pid:
                assert pid == os.getpid()
        if state == "busy":
            running = threading.Event()
            async def forever():
                running.set()
                await asyncio.Event().wait()
            threading.Thread(target=lambda: get_bridge().run(forever), daemon=True).start()
            running.wait()
        child = os.fork()
        if not child:
            assert get_bridge().run(work) == os.getpid()
            with get_bridge().lease("key", resource) as pid:
                assert pid == os.getpid()
            sys.exit(7)
        assert os.waitpid(child, 0)[1] == 7 << 8
        assert get_bridge().run(work) == os.getpid()
    """)
    if state == "busy":  # the thread that waits at exit hears that the loop stops
        assert done.returncode == 0, done.stderr
    else:
        assert_quiet(done)


def test_a_call_under_way_is_lost_in_a_forked_child() -> None:
    done = script("""
        import asyncio, os, threading
        from aiockpt.bridge import get_bridge
        from aiockpt.errors import ClosedError

        go_on = threading.Event()
        async def work():
            while not go_on.is_set():
                await asyncio.sleep(0.001)
            return 5

        bridge = get_bridge()
        call = bridge.start(work)
        child = os.fork()
        if not child:
            call.cancel()
            assert call.wait() and call.done
            for use in (call.result, lambda: bridge.run(work), lambda: bridge.call_soon(print)):
                try:
                    use()
                except ClosedError as error:
                    assert "forked" in str(error)
                else:
                    os._exit(1)
            os._exit(7)
        assert os.waitpid(child, 0)[1] == 7 << 8
        go_on.set()
        assert call.result() == 5
    """)
    assert_quiet(done)


def test_exit_during_a_call_winds_it_up() -> None:
    begun = time.monotonic()
    done = script("""
        import asyncio, threading
        from aiockpt.bridge import get_bridge

        running = threading.Event()
        async def work():
            running.set()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.05)
                print("ended", flush=True)

        get_bridge().start(work)
        running.wait()
    """)
    assert_quiet(done, "ended")
    assert time.monotonic() - begun < room.EXIT_TIMEOUT_S / 2


def test_a_loop_that_cannot_be_made_is_an_error_and_no_hang() -> None:
    done = script("""
        import resource
        from aiockpt.bridge import get_bridge

        async def work():
            return 5

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            get_bridge()
        except OSError:
            print("refused")
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert get_bridge().run(work) == 5
    """)
    assert (done.returncode, done.stdout.split()) == (0, ["refused"]), done.stderr


def test_no_thread_is_left(bridge: Bridge) -> None:
    before = threading.active_count()
    for _ in range(20):
        made = Bridge()
        made.run(lambda: value(1))
        made.close()
    gc.collect()
    assert threading.active_count() == before


def test_signals_stay_with_the_main_thread(bridge: Bridge) -> None:
    before = signal.getsignal(signal.SIGINT)
    bridge.run(lambda: value(1))
    assert signal.getsignal(signal.SIGINT) is before


def test_a_scope_cancels_what_was_started_in_it(bridge: Bridge) -> None:
    inside, outside, scope = Work(), Work(), Scope()
    other = bridge.start(outside)
    with scope.entered():
        assert bridge.run(lambda: value(3)) == 3
        call = bridge.start(inside)
        inside.running.wait()
        scope.cancel()
        with pytest.raises(ClosedError):
            call.result()
        with pytest.raises(ClosedError, match="by its caller"):
            bridge.start(forever)
    assert inside.ended.is_set()
    assert not other.done
    other.cancel()


def test_the_end_of_work_is_told_however_it_ends(bridge: Bridge) -> None:
    ends: list[str] = []
    assert bridge.start(lambda: value(1), on_end=lambda: ends.append("done")).result() == 1
    cancelled = bridge.start(forever, on_end=lambda: ends.append("cancelled"))  # perhaps before it has begun
    cancelled.cancel()
    assert cancelled.wait()
    lost = bridge.start(forever, on_end=lambda: ends.append("stopped"))
    bridge.close()
    assert lost.done
    with pytest.raises(ClosedError):
        bridge.start(forever, on_end=lambda: ends.append("too late"))
    assert ends == ["done", "cancelled", "stopped", "too late"]


def test_cancelling_twice_lets_work_wind_up(bridge: Bridge) -> None:
    work = Work()
    call = bridge.start(work)
    work.running.wait()
    call.cancel()
    call.cancel()
    assert call.wait()
    assert work.ended.is_set()


def test_cancelling_before_the_beginning(bridge: Bridge) -> None:
    """A scope that is cancelled by another thread may know of a call that has not begun."""
    begun = threading.Event()

    class Early(Scope):
        def add(self, member: Cancellable) -> None:
            super().add(member)
            self.cancel()

    async def work() -> None:
        begun.set()
        await forever()

    with Early().entered():
        call = bridge.start(work)
    assert call.wait(10)
    assert not begun.is_set()


def test_the_loops_threads_work_to_the_very_end() -> None:
    """The standard executor refuses work once the main thread has ended, while other threads still save."""
    source = """
        import asyncio, threading
        from aiockpt.bridge import get_bridge

        def late():
            threading.main_thread().join()
            print(get_bridge().run(lambda: asyncio.to_thread(int, "42")))

        threading.Thread(target=late).start()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(source)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("42\n", "")


def test_what_fails_in_the_loops_threads_is_the_callers() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        get_bridge().run(lambda: asyncio.to_thread(int, "no number"))


def spin(seconds: float) -> Callable[[], Coroutine[Any, Any, None]]:
    """Work that uses that much of its thread's CPU time."""

    async def work() -> None:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass

    return work


def test_cpu_time_is_that_of_the_loop_thread(bridge: Bridge) -> None:
    bridge.run(spin(0.0))
    before = bridge.cpu_s
    bridge.run(spin(0.02))
    assert bridge.cpu_s - before >= 0.02
    bridge.close()
    assert bridge.cpu_s >= 0  # whether or not the system still knows the thread


def test_where_a_threads_cpu_time_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(time, "pthread_getcpuclockid")
    bridge = Bridge()
    assert bridge.run(lambda: value(3)) == 3
    assert bridge.cpu_s == 0
    bridge.close()
