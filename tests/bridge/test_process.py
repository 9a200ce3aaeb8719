from __future__ import annotations

import threading
import time

import pytest

from aiockpt.bridge import FOREGROUND, get_bridge, loop_cpu_s
from aiockpt.bridge.calls import WIND_UP_TIMEOUT_S
from bridge.work import assert_quiet, script, spin


async def thread_name() -> str:
    return threading.current_thread().name


def test_one_bridge_a_process() -> None:
    assert get_bridge() is get_bridge() is get_bridge(FOREGROUND)


def test_one_bridge_a_name() -> None:
    assert get_bridge("test-2") is get_bridge("test-2") is not get_bridge()
    names = {threading.current_thread().name, get_bridge().run(thread_name), get_bridge("test-2").run(thread_name)}
    assert names == {"MainThread", "aiockpt-loop", "aiockpt-test-2"}


def test_cpu_time_is_told_by_thread() -> None:
    get_bridge().run(spin(0.0))
    get_bridge("test-2").run(spin(0.0))
    before = loop_cpu_s()
    get_bridge("test-2").run(spin(0.02))
    after = loop_cpu_s()
    assert after["test-2"] - before["test-2"] >= 0.02
    assert after[FOREGROUND] - before[FOREGROUND] < 0.02


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
    assert time.monotonic() - begun < WIND_UP_TIMEOUT_S / 2


def test_exit_stops_the_threads_that_serve_after_those_they_serve() -> None:
    done = script("""
        import asyncio, threading
        from aiockpt.bridge import get_bridge

        running = threading.Event()
        async def serve():
            running.set()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.02)
                print("served", flush=True)

        async def wind_up():
            print("wound-up-by", threading.current_thread().name, flush=True)

        async def work():
            try:
                await get_bridge("other").perform(serve)
            finally:
                await get_bridge("other").perform(wind_up)

        get_bridge().start(work)
        running.wait()
    """)
    assert_quiet(done, "served wound-up-by aiockpt-other")


def test_a_forked_child_has_all_its_threads_anew() -> None:
    done = script("""
        import os, sys, threading
        from aiockpt.bridge import get_bridge, loop_cpu_s

        async def name():
            return os.getpid(), threading.current_thread().name

        async def work():
            return await get_bridge("other").perform(name)

        assert get_bridge().run(work) == (os.getpid(), "aiockpt-other")
        child = os.fork()
        if not child:
            assert threading.active_count() == 1 and not loop_cpu_s()
            assert get_bridge().run(work) == (os.getpid(), "aiockpt-other")
            assert set(loop_cpu_s()) == {"loop", "other"}
            sys.exit(7)
        assert os.waitpid(child, 0)[1] == 7 << 8
        assert get_bridge().run(work) == (os.getpid(), "aiockpt-other")
    """)
    assert_quiet(done)


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
