from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from aiockpt.awaitable.turns import Turn, next_turn, uses_collectives


@pytest.fixture
def group(tmp_path: Path) -> Iterator[dist.ProcessGroup]:
    """The default group, of one rank."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    yield dist.new_group(backend="gloo")
    dist.destroy_process_group()


def takes(turn: Turn) -> bool:
    """Whether it need not wait; takes it if so."""
    thread = threading.Thread(target=turn.__enter__, daemon=True)
    thread.start()
    thread.join(0.05)
    return not thread.is_alive()


def test_one_after_another() -> None:
    first = Turn()
    second = Turn(first)
    third = Turn(second)
    order: list[int] = []

    def take(number: int, turn: Turn) -> None:
        with turn:
            order.append(number)

    threads = [threading.Thread(target=take, args=pair) for pair in ((3, third), (2, second), (1, first))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert order == [1, 2, 3]


def test_a_turn_that_is_given_up() -> None:
    first = Turn()
    second = Turn(first)
    assert not takes(second)
    first.give_up()
    assert takes(Turn(first))


def test_a_turn_that_is_given_up_before_it_was_taken_lets_nobody_overtake() -> None:
    first = Turn()
    second = Turn(first)
    third = Turn(second)
    assert takes(first)
    second.give_up()
    assert not takes(third)
    first.give_up()
    assert takes(Turn(second))


def test_each_group_has_its_own(group: dist.ProcessGroup) -> None:
    default = next_turn(None, no_dist=False)
    own = next_turn(group, no_dist=False)
    assert takes(default)
    assert takes(own)
    assert not takes(next_turn(group, no_dist=False))
    assert not takes(next_turn(dist.group.WORLD, no_dist=False))
    default.give_up()
    own.give_up()


def test_nobody_waits_without_collectives(group: dist.ProcessGroup) -> None:
    assert uses_collectives(no_dist=False)
    assert not uses_collectives(no_dist=True)
    assert takes(next_turn(None, no_dist=True))
    assert takes(next_turn(None, no_dist=True))


def test_nobody_waits_without_torch_distributed() -> None:
    assert not uses_collectives(no_dist=False)
    assert takes(next_turn(None, no_dist=False))
    assert takes(next_turn(None, no_dist=False))
