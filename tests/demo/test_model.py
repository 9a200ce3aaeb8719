from __future__ import annotations

import torch

from aiockpt.demo.job import Recipe
from aiockpt.demo.model import VOCABULARY, Transformer


def test_logits_for_every_place(recipe: Recipe) -> None:
    tokens = torch.zeros(recipe.batch, recipe.context, dtype=torch.long)
    assert Transformer(recipe)(tokens).shape == (recipe.batch * recipe.context, VOCABULARY)


def test_no_place_sees_what_comes_after_it(recipe: Recipe) -> None:
    model = Transformer(recipe).eval()
    tokens = torch.arange(recipe.context).view(1, -1)
    changed = tokens.clone()
    changed[0, 7] = 200
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:7], after[:7])
    assert not torch.equal(before[7:], after[7:])


def test_training_drops_at_random(recipe: Recipe) -> None:
    model = Transformer(recipe)
    tokens = torch.arange(recipe.context).view(1, -1)
    assert not torch.equal(model(tokens), model(tokens))
