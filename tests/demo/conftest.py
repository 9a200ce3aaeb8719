"""Runs small enough for tests, and what they change of torch put back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from aiockpt.demo.job import Job, Place, Recipe
from aiockpt.demo.training import Training


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(steps=4, save_at=2, layers=1, dim=64, heads=2, context=16, batch=2)


@pytest.fixture
def job(recipe: Recipe) -> Job:
    return Job(recipe, Place("s3://bucket/run", "us-east-1"), seed=1, until=recipe.steps)


@pytest.fixture
def training(recipe: Recipe) -> Iterator[Training]:
    with torch.random.fork_rng():
        yield Training(recipe, seed=1, shards=[0])
