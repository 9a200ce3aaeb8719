from __future__ import annotations

import mmap
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import ClassVar

import pytest
import torch

from aiockpt.dcp import lent_memory
from aiockpt.dcp.lent_memory import lend
from aiockpt.model import MiB


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    lent_memory._kept.clear()
    yield
    lent_memory._kept.clear()


def nothing() -> None:
    pass


def kept() -> list[int]:
    return [len(mapped) for mapped in lent_memory._kept]


def test_what_comes_back_is_lent_again() -> None:
    view = lend(MiB, nothing)
    mapping = view.obj
    assert (len(view), kept()) == (MiB, [])
    del view
    assert kept() == [MiB]
    assert lend(MiB // 2, nothing).obj is mapping


def test_what_is_in_use_is_not() -> None:
    first, second = lend(MiB, nothing), lend(MiB, nothing)
    assert first.obj is not second.obj


def test_too_little_is_given_up_for_more() -> None:
    lend(MiB, nothing)
    larger = lend(2 * MiB, nothing)
    assert (len(larger), kept()) == (2 * MiB, [])


def test_one_mapping_is_kept_at_most() -> None:
    views = [lend(n * MiB, nothing) for n in (1, 3, 2)]
    ends = [weakref.ref(view.obj) for view in views]
    del views
    assert len(kept()) == 1
    assert sum(end() is not None for end in ends) == 1


def test_every_tensor_that_lies_in_it_keeps_it() -> None:
    view = lend(MiB, nothing)
    tensors = [torch.frombuffer(view, dtype=torch.uint8, offset=start, count=10) for start in (0, 64)]
    end = weakref.ref(view)
    del view
    tensors.pop()
    assert end() is not None
    tensors.pop()
    assert end() is None
    assert kept() == [MiB]


def test_it_ends_before_it_is_lent_again_whatever_the_thread() -> None:
    calls: list[tuple[list[int], int]] = []
    views = [lend(MiB, lambda: calls.append((kept(), threading.get_ident())))]
    other = threading.Thread(target=views.clear)
    other.start()
    other.join()
    assert calls == [([], other.ident)]
    assert kept() == [MiB]


class Recording(mmap.mmap):
    """Notes what the system is told, and refuses some of it."""

    told: ClassVar[list[int]] = []
    refused: ClassVar[set[int]] = set()

    def madvise(self, advice: int, *_: int) -> None:
        self.told.append(advice)
        if advice in self.refused:
            raise OSError("Invalid argument")


@pytest.mark.skipif(sys.platform != "linux", reason="others have no huge pages to ask for")
@pytest.mark.parametrize("refused", [set(), {mmap.MADV_HUGEPAGE}, {mmap.MADV_FREE}])
def test_the_system_is_asked_for_huge_pages_and_told_what_is_free(
    refused: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mmap, "mmap", Recording)
    monkeypatch.setattr(Recording, "told", [])
    monkeypatch.setattr(Recording, "refused", refused)
    view = lend(MiB, nothing)
    assert Recording.told == [mmap.MADV_HUGEPAGE]
    del view
    assert Recording.told == [mmap.MADV_HUGEPAGE, mmap.MADV_FREE]
    assert kept() == ([] if mmap.MADV_FREE in refused else [MiB])


def test_a_system_that_cannot_be_told_has_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_FREE")
    lend(MiB, nothing)
    assert kept() == []


def test_more_than_there_is() -> None:
    with pytest.raises(OSError, match=r"allocate"):
        lend(1 << 60, nothing)
