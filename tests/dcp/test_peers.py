"""Several ranks in one process: threads that share a key-value store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from aiockpt.bridge import get_bridge
from aiockpt.dcp import peers
from aiockpt.dcp.peers import Fate, failing_together, shared_fates
from aiockpt.errors import AccessDenied, ClosedError, RankFailed
from aiockpt.scope import Scope


@pytest.fixture(autouse=True)
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(peers, "LOOK_INTERVAL_S", 0.01)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def wait_for_ever() -> None:
    get_bridge().run(asyncio.Event().wait)


def fail(fate: Fate, message: str = "no") -> None:
    with pytest.raises(AccessDenied), failing_together(fate):
        raise AccessDenied(message)


def test_a_failure_ends_what_the_others_have_under_way() -> None:
    ours, theirs = shared_fates(2)
    assert isinstance(theirs, Fate)
    other = threading.Timer(0, fail, [theirs, "s3://bucket/__1_0.distcp"])
    other.start()
    said = r"rank 1 failed: AccessDenied: s3://bucket/__1_0\.distcp"
    with pytest.raises(RankFailed, match=said) as failure, failing_together(ours):
        wait_for_ever()
    assert isinstance(failure.value.__cause__, ClosedError)
    other.join()


def test_the_other_saves_and_loads_of_a_rank_go_on() -> None:
    for other in (*shared_fates(2), None):
        fate, _ = shared_fates(2)
        fail(fate)  # type: ignore[arg-type]
        with failing_together(other):
            get_bridge().run(lambda: asyncio.sleep(0.05))


def test_a_cached_plan_is_not_haunted_by_its_former_failure() -> None:
    first, second = Fate("token", 0), Fate("token", 1)
    fail(second)
    with pytest.raises(RankFailed), failing_together(first):
        wait_for_ever()
    for fate in (first, second):
        with failing_together(fate):
            get_bridge().run(lambda: asyncio.sleep(0.05))


def test_who_is_alone_shares_nothing() -> None:
    assert shared_fates(1) == [None]
    with pytest.raises(LookupError), failing_together(None):
        raise LookupError


def test_a_note_does_not_grow_with_its_error() -> None:
    ours, theirs = shared_fates(2)
    fail(theirs, "x" * 100_000)  # type: ignore[arg-type]
    with pytest.raises(RankFailed) as failure, failing_together(ours):
        wait_for_ever()
    assert len(str(failure.value)) == peers.NOTE_LENGTH


def test_who_cancels_the_save_cancels_it_among_peers_too() -> None:
    scope, (ours, _) = Scope(), shared_fates(2)
    threading.Timer(0.02, scope.cancel).start()
    with scope.entered(), pytest.raises(ClosedError), failing_together(ours):
        wait_for_ever()


def test_a_store_that_is_gone_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def __init__(self, *_: object) -> None:
            pass

        def check(self, _: list[str]) -> bool:
            raise RuntimeError("Connection reset by peer")

        def set(self, *_: str) -> None:
            raise RuntimeError("Connection reset by peer")

    monkeypatch.setattr(dist, "PrefixStore", Gone)
    ours, theirs = shared_fates(2)
    with failing_together(ours):
        get_bridge().run(lambda: asyncio.sleep(0.05))
    fail(theirs)  # type: ignore[arg-type]
