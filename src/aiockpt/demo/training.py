"""A training run as one stateful object: model, optimizer, schedule, place in the text, random streams.

Written so that the very same bits come out of one process training on all shards of the data in turn, and of two
processes that train on one each with their parameters sharded (FSDP2):

- A shard of the data has a random stream of its own, whichever process trains on it; a process swaps it in.
- Each shard's gradients are computed whole by one process, from whole weights, of its loss over the count of shards.
  They are then summed, by autograd in one process and by reduce-scatter between several. A sum of two floats does not
  depend on their order, a sum of three does (`Recipe.is_order_free`).
- AdamW is element-wise (see `job.SHARD_ELEMENTS`), and nothing, like a gradient's norm, is reduced over elements.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn import functional
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from aiockpt.demo.model import Transformer
from aiockpt.demo.text import corpus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn
    from torch.distributed.device_mesh import DeviceMesh

    from aiockpt.demo.job import Recipe

PEAK_LR = 1e-3
WARM_UP_STEPS = 3
WEIGHT_DECAY = 0.1


class Training:
    """One process's part of a run; satisfies DCP's ``Stateful``.

    Attributes:
        step: optimizer steps made so far.
        model: the transformer, sharded over `mesh` if there is one.
    """

    def __init__(self, recipe: Recipe, *, seed: int, shards: Sequence[int], mesh: DeviceMesh | None = None) -> None:
        """Build everything afresh from `seed`, to train on `shards` of the data."""
        torch.manual_seed(seed)
        self._recipe = recipe
        self._text = torch.frombuffer(bytearray(corpus()), dtype=torch.uint8)
        self._streams = {shard: _stream(seed, shard) for shard in shards}
        self.step = 0
        self._position = 0
        self.model = Transformer(recipe)
        if mesh is not None:
            _shard(self.model, mesh)
        self._optimizer = _adamw(self.model)
        self._schedule = LambdaLR(self._optimizer, lambda step: _lr_factor(step, recipe.steps))

    def advance(self) -> dict[int, float]:
        """Train one step; returns the loss of each shard of this process."""
        losses = {shard: self._backward(shard) for shard in self._streams}
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        self.step += 1
        self._position += self._recipe.shards * self._shard_tokens
        return losses

    def _backward(self, shard: int) -> float:
        inputs, targets = self._batch(shard)
        torch.set_rng_state(self._streams[shard])
        logits = self.model(inputs)
        loss = functional.cross_entropy(logits, targets.flatten())
        (loss / self._recipe.shards).backward()  # type: ignore[no-untyped-call]
        self._streams[shard] = torch.get_rng_state()
        return loss.item()

    @property
    def _shard_tokens(self) -> int:
        return self._recipe.batch * self._recipe.context

    def _batch(self, shard: int) -> tuple[Tensor, Tensor]:
        start = self._position + shard * self._shard_tokens
        places = torch.arange(start, start + self._shard_tokens + 1) % len(self._text)
        tokens = self._text[places].long()
        shape = (self._recipe.batch, self._recipe.context)
        return tokens[:-1].view(shape), tokens[1:].view(shape)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; the tensors are the live ones, sharded if the model is.

        The optimizer must have stepped or be about to be loaded: PyTorch fills an empty optimizer's state by a step
        with zero gradients, and that counts.
        """
        return self._state(StateDictOptions())

    def whole_state(self) -> dict[str, Any]:
        """As `state_dict`, with sharded tensors gathered: every process must call it."""
        return self._state(StateDictOptions(full_state_dict=True))

    def _state(self, options: StateDictOptions) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self._optimizer, options=options)
        return {
            "model": model,
            "optimizer": optimizer,
            "schedule": self._schedule.state_dict(),
            "step": self.step,
            "position": self._position,
            "rng": {str(shard): stream for shard, stream in self._streams.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`, as `state_dict` gave it."""
        set_state_dict(
            self.model,
            self._optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        self._schedule.load_state_dict(state["schedule"])
        self.step = state["step"]
        self._position = state["position"]
        self._streams = {int(shard): stream for shard, stream in state["rng"].items()}


def _stream(seed: int, shard: int) -> Tensor:
    return torch.Generator().manual_seed(seed + 1 + shard).get_state()


def _shard(model: Transformer, mesh: DeviceMesh) -> None:
    for module in (*model.blocks, model):
        part = fully_shard(module, mesh=mesh)
        # Gloo only sums, and the loss is divided already.
        part.set_force_sum_reduction_for_comms(True)
        part.set_gradient_divide_factor(1.0)


def _adamw(model: nn.Module) -> AdamW:
    matrices = _parameters(model, is_matrix=True)
    vectors = _parameters(model, is_matrix=False)
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    # One tensor at a time: the same arithmetic for sharded and whole parameters.
    return AdamW(groups, lr=PEAK_LR, foreach=False)


def _parameters(model: nn.Module, *, is_matrix: bool) -> list[nn.Parameter]:
    return [p for p in model.parameters() if (p.ndim > 1) == is_matrix]


def _lr_factor(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a tenth."""
    if step < WARM_UP_STEPS:
        return (step + 1) / WARM_UP_STEPS
    done = min(1.0, (step - WARM_UP_STEPS) / max(1, steps - WARM_UP_STEPS))
    return 0.55 + 0.45 * math.cos(math.pi * done)
