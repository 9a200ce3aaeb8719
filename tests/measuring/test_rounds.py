from __future__ import annotations

import pytest
import torch
import torch.distributed.checkpoint as dcp

from aiockpt.blocking.store import Store
from aiockpt.errors import ChecksumMismatch
from aiockpt.measuring.rounds import Rounds, Sample
from aiockpt.measuring.workload import mixed
from aiockpt.model import ObjectId
from dcp.checkpoints import Place
from dcp.conftest import local  # noqa: F401  # a fixture
from transfer.conftest import store  # noqa: F401  # a fixture


def test_a_round_leaves_nothing(local: Place, store: Store) -> None:  # noqa: F811  # the fixtures
    state = mixed(1_000_000)
    saved, loaded = Rounds(store, ObjectId(local.bucket, "a/b"), state).run()
    assert saved.nbytes == loaded.nbytes == sum(tensor.nbytes for tensor in state.values())
    assert min(saved.seconds, loaded.seconds, saved.cpu_s, loaded.cpu_s) > 0
    assert local.keys() == []


def test_other_bytes_are_an_error(
    local: Place,  # noqa: F811
    store: Store,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dcp, "load", lambda *_, **__: None)
    with pytest.raises(ChecksumMismatch, match="'w' came back other than it was saved"):
        Rounds(store, ObjectId(local.bucket, "a"), {"w": torch.ones(3)}).run()
    assert local.keys() == []


def test_rates() -> None:
    sample = Sample(2_000_000_000, seconds=4.0, cpu_s=1.0)
    assert (sample.gb_per_s, sample.cpu_s_per_gb) == (0.5, 0.5)
