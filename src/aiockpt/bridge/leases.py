"""What is leased on a loop: opened once per key, shared by all who hold a lease, closed a while after the last one.

Lives on the loop; it knows nothing of threads, nor of what it hosts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from contextlib import AbstractAsyncContextManager
from typing import Any

#: Seconds that a resource stays open after its last lease: a warm engine saves the next call 0.1 s of client building,
#: an idle one holds a few connections that the server will close anyway.
LINGER_S = 60.0


class Resource:
    """Something open on the loop, in a task of its own so that its scopes are entered and left in one task."""

    def __init__(self, factory: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        self.leases = 0
        self.closing: asyncio.TimerHandle | None = None
        self._value: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._close = asyncio.Event()
        self.task = asyncio.get_running_loop().create_task(self._host(factory))

    async def _host(self, factory: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        try:
            async with factory() as value:
                self._value.set_result(value)
                await self._close.wait()
        except Exception as error:
            if self._value.done():
                raise
            self._value.set_exception(error)
            self._value.exception()  # retrieved: those who waited for it may have been cancelled

    async def opened(self) -> None:
        """Wait until it is; raises what kept it from that."""
        await asyncio.shield(self._value)

    @property
    def value(self) -> Any:
        """What was opened."""
        return self._value.result()

    def close(self) -> None:
        """Have it closed; its task ends then."""
        self._close.set()


class Leases:
    """The resources of one loop, by key."""

    def __init__(self) -> None:
        self._resources: dict[Hashable, Resource] = {}

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        """Those that the resources are open in."""
        return {resource.task for resource in self._resources.values()}

    async def acquire(self, key: Hashable, factory: Callable[[], AbstractAsyncContextManager[Any]]) -> Resource:
        """Lease what is open for ``key``, opened now with ``factory()`` if nothing is."""
        resource = self._resources.get(key)
        if resource is None or resource.task.done():
            resource = self._resources[key] = Resource(factory)
        resource.leases += 1
        if resource.closing is not None:
            resource.closing.cancel()
            resource.closing = None
        try:
            await resource.opened()
        except BaseException:
            self.give_back(key, resource)
            raise
        return resource

    def give_back(self, key: Hashable, resource: Resource) -> None:
        """End a lease."""
        resource.leases -= 1
        if not resource.leases:
            resource.closing = asyncio.get_running_loop().call_later(LINGER_S, self._expire, key, resource)

    async def aclose(self) -> None:
        """Close all of them, whoever holds a lease."""
        tasks = self.tasks
        for resource in self._resources.values():
            resource.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _expire(self, key: Hashable, resource: Resource) -> None:
        if not resource.leases and self._resources.get(key) is resource:
            del self._resources[key]
            resource.close()
