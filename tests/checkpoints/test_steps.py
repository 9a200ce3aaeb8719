from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiockpt.checkpoints.steps import NAME, Step, check_template, is_complete, name_of, what_is_there
from aiockpt.dcp.names import step_of
from aiockpt.errors import ConfigError


@given(st.lists(st.integers(0, 99_999_999), min_size=2))
def test_names_sort_as_steps_do(steps: list[int]) -> None:
    names = [name_of(NAME, step) for step in steps]
    assert [step_of(name) for name in sorted(names)] == sorted(steps)


@pytest.mark.parametrize("template", [NAME, "{}", "checkpoint-{}", "global_step{:d}", "iter_{:07d}"])
def test_templates(template: str) -> None:
    check_template(template)


@pytest.mark.parametrize("template", ["step", "", "{}-step", "step-{:08d}/model", "{0}{1}", "{step}", "{:x}", "{:.2f}"])
def test_templates_that_cannot_work(template: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        check_template(template)


@pytest.mark.parametrize("step", [-1, 1.0, True, "7", None])
def test_no_step(step: Any) -> None:
    with pytest.raises(ConfigError, match="0 or more"):
        name_of(NAME, step)


@pytest.mark.parametrize(
    ("names", "complete"),
    [
        ("", False),
        (".metadata", True),
        ("__0_0.distcp", False),
        (".metadata.tmp __0_0.distcp", False),
        (".metadata __3_0.distcp", True),
        ("__0.metadata __0_0.distcp", True),
        ("__0.metadata __1.metadata __0_0.distcp __1_0.distcp __1_1.distcp", True),
        ("__0.metadata __0_0.distcp __1_0.distcp", False),
        ("__1.metadata __1_0.distcp", False),
        ("__0.metadata __2.metadata", False),
        ("notes.txt", False),
    ],
)
def test_completeness(names: str, complete: bool) -> None:
    assert is_complete(names.split()) is complete


def test_what_a_run_without_a_checkpoint_has() -> None:
    steps = [Step(n, name_of(NAME, n), f"s3://b/run/{n}", complete=False) for n in (20, 10)]
    assert "no checkpoint in s3://b/run:" in what_is_there("s3://b/run", [])
    assert what_is_there("s3://b/run", steps).endswith("only 2 that are not, the last one step-00000020")
