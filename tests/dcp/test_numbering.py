from __future__ import annotations

import pytest

from aiockpt.dcp import numbering
from aiockpt.dcp.numbering import likely_number, note_used
from aiockpt.dcp.recent import REMEMBERED
from aiockpt.model import ObjectId


@pytest.fixture(autouse=True)
def _nothing_used_yet() -> None:
    numbering._next_numbers._rows.clear()


def at(name: str) -> ObjectId:
    return ObjectId("bucket", f"run/{name}/__0_")


def test_a_path_of_which_nothing_is_known_begins_at_zero() -> None:
    assert likely_number(at("new")) == 0


def test_numbers_go_on_from_what_was_used_last() -> None:
    note_used(at("a"), 1)
    note_used(at("b"), 8)
    note_used(at("a"), 2)
    assert (likely_number(at("a")), likely_number(at("b"))) == (2, 8)


def test_those_that_were_used_last_are_remembered() -> None:
    note_used(at("overwritten"), 1)
    for step in range(3 * REMEMBERED):
        note_used(at(f"step-{step}"), 1)
        note_used(at("overwritten"), step)
    assert likely_number(at("overwritten")) == 3 * REMEMBERED - 1
    assert likely_number(at("step-0")) == 0
    assert len(numbering._next_numbers._rows) == REMEMBERED
