"""Ranks that fail together: a rank whose part fails says so at once, and the others stop.

DCP tells every rank of a failure, as one ``CheckpointException``, but only when all have ended their part: a rank that
is refused in the first second is heard of when the slowest has moved its last byte. So a failing rank leaves a note in
the key-value store of ``torch.distributed``, where each rank looks once a second while it reads or writes; what it has
under way is cancelled then, and it fails with ``RankFailed``. DCP's exception comes as ever, only soon.

A rank that is killed leaves no note. torchrun ends the others then, and gloo's collectives fail by themselves.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import torch.distributed as dist

from aiockpt.errors import RankFailed
from aiockpt.scope import Scope, current_scope

logger = logging.getLogger("aiockpt")

#: Seconds between two looks: what a failure costs the others at most. A look is one small request to the store of
#: rank 0, which serves tens of thousands a second.
LOOK_INTERVAL_S = 1.0

#: Longest note, in characters: a sentence or two, not a traceback.
NOTE_LENGTH = 2000


@dataclass(slots=True)
class Fate:
    """What a rank shares with the others of one save or load; carried to it by its plan.

    Attributes:
        token: the same for all ranks of one save or load, and for no other.
        rank: whose this is.
        uses: how many saves have used it: planners that cache their plans use one again and again.
    """

    token: str
    rank: int
    uses: int = field(default=0, compare=False)


def shared_fates(ranks: int) -> Sequence[Fate | None]:
    """One for each rank of a new save or load; None for one that is alone. On the coordinator."""
    token = uuid.uuid4().hex
    return [Fate(token, rank) if ranks > 1 else None for rank in range(ranks)]


@contextmanager
def failing_together(fate: object) -> Iterator[None]:
    """Do a rank's part: what fails inside is told to the others, and a failure of theirs cancels what is under way.

    ``fate``: of a plan that went through ``shared_fates``; with anything else, every rank is on its own.

    Raises:
        RankFailed: another rank failed first.
    """
    if not isinstance(fate, Fate) or not dist.is_initialized():
        yield
        return
    fate.uses += 1
    board = _Board(fate)
    scope = Scope()
    with _part_of_current(scope), scope.entered(), _watching(board, scope):
        try:
            yield
        except BaseException as error:
            if board.note:
                raise RankFailed(board.note) from error
            board.post(error)
            raise


class _Board:
    """Where the ranks of one save or load leave and find notes of failure."""

    def __init__(self, fate: Fate) -> None:
        self._store = dist.PrefixStore(f"aiockpt/{fate.token}/{fate.uses}", dist.distributed_c10d._get_default_store())  # noqa: SLF001  # torch has no public name for it
        self._rank = fate.rank
        self.note = ""

    def post(self, error: BaseException) -> None:
        with suppress(RuntimeError):  # the store is gone, and rank 0 with it: the others notice by themselves
            self._store.set("failed", f"rank {self._rank} failed: {type(error).__name__}: {error}"[:NOTE_LENGTH])

    def look(self) -> bool:
        if self._store.check(["failed"]):
            self.note = self._store.get("failed").decode()
        return bool(self.note)


@contextmanager
def _watching(board: _Board, scope: Scope) -> Iterator[None]:
    """Look for a note until the block ends; one that is found cancels the scope."""
    over = threading.Event()

    def watch() -> None:
        try:
            while not over.wait(LOOK_INTERVAL_S):
                if board.look():
                    scope.cancel()
                    return
        except RuntimeError as error:
            logger.debug("the store of torch.distributed does not answer any more: %s", error)

    thread = threading.Thread(target=watch, name="aiockpt-peers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(LOOK_INTERVAL_S)  # a look under way; one at a store that hangs is left to itself


@contextmanager
def _part_of_current(scope: Scope) -> Iterator[None]:
    """Whoever cancels the scope that this thread is in cancels ``scope``, too."""
    outer = current_scope()
    if outer is None:
        yield
        return
    outer.add(scope)
    try:
        yield
    finally:
        outer.discard(scope)
