"""A run whose checkpoints two ranks save and load together, on gloo."""

from __future__ import annotations

from checkpoints.workers import training
from dcp.checkpoints import Place
from dcp.test_ranks import launch


def test_ranks_save_prune_and_load_the_same(local: Place) -> None:
    launch(local, 2, training.blocking, "run")
    objects = [".metadata", "__0_0.distcp", "__1_0.distcp"]
    assert local.keys() == [f"run/step-00000003/{name}" for name in objects]
