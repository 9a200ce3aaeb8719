from __future__ import annotations

import asyncio

import pytest

from aiockpt.bridge import Bridge, leases
from bridge.work import Resource, resource, until


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
    monkeypatch.setattr(leases, "LINGER_S", 0.01)
    log: list[str] = []
    with bridge.lease("key", resource(log)) as first:
        pass
    bridge.run(lambda: until(lambda: log == ["open", "close"]))
    assert not bridge._leases._resources
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
                await bridge._leases.acquire("key", lambda: Shut(entered))
            await bridge._leases.acquire("key", resource(log))

        async def second() -> None:
            with pytest.raises(LookupError):
                await bridge._leases.acquire("key", lambda: Shut(entered))
            await asyncio.sleep(0)

        tasks = [asyncio.ensure_future(first()), asyncio.ensure_future(second())]
        await asyncio.sleep(0)
        entered.set()
        await asyncio.gather(*tasks)
        return bridge._leases._resources["key"].leases

    assert bridge.run(scene) == 1
