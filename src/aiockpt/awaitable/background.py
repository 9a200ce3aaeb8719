"""Background work as one object: asked for its progress, awaited, cancelled."""

from __future__ import annotations

from aiockpt.awaitable.checkpoint_calls import Adapter
from aiockpt.awaitable.operation import Operation
from aiockpt.awaitable.outcome import Pending, wound_up
from aiockpt.observe.report import Progress, Report


class Background(Pending[Report]):
    """A save or load that goes on while its owner does something else; its result is its report.

    It depends on no loop, least of all on the one that began it.
    """

    def __init__(self, adapter: Adapter, operation: Operation[Report]) -> None:
        super().__init__(operation.outcome)
        self._adapter = adapter
        self._operation = operation

    def progress(self) -> Progress | None:
        """How far it is, from any thread; None until it has begun."""
        return self._adapter.progress()

    @property
    def cancelled(self) -> bool:
        """Whether ``cancel`` was called."""
        return self._operation.scope.cancelled

    def cancel(self) -> None:
        """Have it end, from any thread, without waiting for that: waits for it raise ClosedError."""
        self._operation.scope.cancel()

    async def aclose(self) -> None:
        """Cancel it, and wait until nothing of it is under way; without effect once it has ended."""
        self.cancel()
        await wound_up(self._operation.outcome, self._operation.scope)
