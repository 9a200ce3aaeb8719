from __future__ import annotations

import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from aiockpt.engine.budget import ByteBudget

LIMIT = 100


class BudgetModel(RuleBasedStateMachine):
    """Reservations against a plain sum."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.budget = ByteBudget(LIMIT)
        self.total = self.overdrawn = self.peak = 0

    def took(self, nbytes: int) -> int:
        self.total += nbytes
        self.peak = max(self.peak, self.total)
        return nbytes

    @rule(target=held, nbytes=st.integers(0, 150))
    def try_reserve(self, nbytes: int) -> int:
        fits = not self.total or self.total + nbytes <= LIMIT
        assert self.budget.try_reserve(nbytes) is fits
        return self.took(nbytes if fits else 0)

    @rule(target=held, nbytes=st.integers(0, 150))
    def reserve_or_give_up(self, nbytes: int) -> int:
        fits = not self.total or self.total + nbytes <= LIMIT
        assert self.budget.reserve(nbytes, give_up=lambda: True) is fits
        return self.took(nbytes if fits else 0)

    @rule(target=held, nbytes=st.integers(0, 150))
    def overdraw(self, nbytes: int) -> int:
        self.budget.overdraw(nbytes)
        return self.took(nbytes)

    @rule(nbytes=consumes(held))
    def release(self, nbytes: int) -> None:
        self.budget.release(nbytes)
        self.total -= nbytes

    @invariant()
    def agrees(self) -> None:
        assert self.budget.reserved_bytes == self.total >= 0
        assert self.budget.peak_bytes == self.peak

    def teardown(self) -> None:
        self.budget.release(self.total)
        assert self.budget.reserved_bytes == 0
        assert self.budget.try_reserve(10 * LIMIT)  # more than there is, when nothing else is reserved


BudgetModel.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestBudget = BudgetModel.TestCase


def test_whoever_waits_gets_through() -> None:
    budget = ByteBudget(LIMIT)
    passed = threading.Semaphore(0)

    def work(nbytes: int) -> None:
        for _ in range(50):
            assert budget.reserve(nbytes)
            budget.release(nbytes)
        passed.release()

    threads = [threading.Thread(target=work, args=(nbytes,)) for nbytes in (1, 40, 60, 100, 150)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert budget.reserved_bytes == 0
    assert budget.peak_bytes <= 150


def test_a_release_wakes_who_may_give_up() -> None:
    budget = ByteBudget(LIMIT)
    budget.overdraw(LIMIT + 1)
    over = threading.Event()
    looked = threading.Event()
    outcome: list[bool] = []

    def give_up() -> bool:
        looked.set()
        return over.is_set()

    thread = threading.Thread(target=lambda: outcome.append(budget.reserve(50, give_up)))
    thread.start()
    looked.wait()
    over.set()
    budget.release(0)
    thread.join(5)
    assert outcome == [False]
    assert budget.reserved_bytes == LIMIT + 1


def test_more_than_was_reserved_is_a_bug() -> None:
    budget = ByteBudget(LIMIT)
    with pytest.raises(AssertionError):
        budget.release(1)
