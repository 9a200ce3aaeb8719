"""What was saved or loaded is let go with the call: no cycle, connection or report keeps its tensors for longer."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import aiockpt
from aiockpt.model import MiB
from dcp.checkpoints import Place, load, save

#: Small ones are copied, large ones are sent in several parts.
SIZES = [4096] * 50 + [300_000, 20 * MiB]


@pytest.fixture
def collector_off() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Watched:
    """A state dict, and whether its memory is still there."""

    def __init__(self) -> None:
        arrays = [np.full(size // 4, number, dtype=np.float32) for number, size in enumerate(SIZES)]
        self._memories = [weakref.ref(array) for array in arrays]
        self.state = {str(number): torch.from_numpy(array) for number, array in enumerate(arrays)}

    def kept(self) -> list[int]:
        """The sizes of those that are not free although nobody needs them."""
        self.state.clear()
        return [size for size, memory in zip(SIZES, self._memories, strict=True) if memory() is not None]


@pytest.mark.usefixtures("collector_off")
@pytest.mark.parametrize("keep_writer", [False, True])
def test_a_save_keeps_nothing(local: Place, keep_writer: bool) -> None:
    watched, writer = Watched(), local.writer()
    save(watched.state, writer)
    if not keep_writer:
        del writer
    assert watched.kept() == []


@pytest.mark.usefixtures("collector_off")
def test_a_load_keeps_nothing(local: Place) -> None:
    local.save(Watched().state)
    watched, reader = Watched(), local.reader()
    load(watched.state, reader)
    assert watched.kept() == []


@pytest.mark.usefixtures("collector_off")
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
async def test_awaited_calls_keep_nothing(local: Place) -> None:
    settings = local.settings | {"region": local.server.region}
    for name in ("save", "load", "save_in_background"):
        watched = Watched()
        if name == "save_in_background":
            await aiockpt.save_in_background(watched.state, local.uri("other"), **settings)
        else:
            await getattr(aiockpt, name)(watched.state, local.uri("ckpt"), **settings)
        assert (name, watched.kept()) == (name, [])
