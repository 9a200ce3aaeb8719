from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from aiockpt.demo.fingerprint import fingerprints
from aiockpt.demo.job import Recipe
from aiockpt.demo.training import PEAK_LR, WARM_UP_STEPS, Training, _lr_factor

OTHER_SEED = 77


def advance(training: Training, steps: int) -> list[dict[int, float]]:
    return [training.advance() for _ in range(steps)]


def saved(training: Training) -> dict[str, Any]:
    return copy.deepcopy(training.state_dict())


def outcome(training: Training) -> tuple[list[dict[int, float]], dict[str, str]]:
    return advance(training, 2), fingerprints(training.whole_state())


def test_two_halves_are_the_whole(recipe: Recipe, training: Training) -> None:
    advance(training, 2)
    state = saved(training)
    resumed = Training(recipe, seed=OTHER_SEED, shards=[0])
    resumed.advance()
    resumed.load_state_dict(state)
    assert outcome(resumed) == outcome(training)


@pytest.mark.parametrize("part", ["model", "optimizer", "schedule", "position", "rng"])
def test_every_part_of_the_state_is_needed(recipe: Recipe, training: Training, part: str) -> None:
    advance(training, 2)
    state = saved(training)
    resumed = Training(recipe, seed=OTHER_SEED, shards=[0])
    resumed.advance()
    state[part] = saved(resumed)[part]
    resumed.load_state_dict(state)
    assert outcome(resumed) != outcome(training)


def test_the_same_seed_is_the_same_run(recipe: Recipe) -> None:
    one, other, different = (Training(recipe, seed=seed, shards=[0]) for seed in (1, 1, 2))
    expected = outcome(one)
    assert outcome(other) == expected
    assert outcome(different) != expected


def test_a_shard_is_the_same_whoever_else_trains(recipe: Recipe) -> None:
    two = Recipe(**{name: getattr(recipe, name) for name in recipe.__slots__} | {"shards": 2})
    both, second = Training(two, seed=1, shards=[0, 1]), Training(two, seed=1, shards=[1])
    losses = both.advance()
    assert set(losses) == {0, 1}
    assert losses[0] != losses[1]
    assert second.advance() == {1: losses[1]}


def test_losses_fall(training: Training) -> None:
    first, *_, last = advance(training, 12)
    assert last[0] < first[0]


def test_the_text_goes_round(recipe: Recipe, training: Training) -> None:
    training._position = len(training._text) - 5
    inputs, targets = training._batch(0)
    assert inputs.shape == targets.shape == (recipe.batch, recipe.context)
    assert torch.equal(inputs.flatten()[1:], targets.flatten()[:-1])
    assert torch.equal(targets.flatten()[4:], training._text[: targets.numel() - 4].long())


def test_vectors_do_not_decay(training: Training) -> None:
    decaying, steady = training._optimizer.param_groups
    assert {p.ndim for p in decaying["params"]} == {2}
    assert {p.ndim for p in steady["params"]} == {1}
    assert steady["weight_decay"] == 0 < decaying["weight_decay"]
    assert decaying["lr"] == pytest.approx(PEAK_LR / WARM_UP_STEPS)


def test_the_rate_rises_and_falls() -> None:
    rates = [_lr_factor(step, 12) for step in range(13)]
    assert rates[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)
