"""The command line on the local endpoint: ``aiockpt(...)`` runs a command in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from aiockpt.cli import main
from aiockpt.testing import LocalEndpoint
from dcp.checkpoints import Place
from dcp.conftest import local  # noqa: F401  # a fixture

Run = Callable[..., Result]


@pytest.fixture
def aiockpt(local_endpoint: LocalEndpoint, monkeypatch: pytest.MonkeyPatch) -> Run:
    for name, value in local_endpoint.environ().items():
        monkeypatch.setenv(name, value)

    def run(*arguments: object, stdin: str | None = None) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)

    return run


def document(result: Result) -> dict[str, Any]:
    """The JSON document of a command that succeeded, or said no."""
    assert result.exit_code in {0, 1}, result.output
    loaded: dict[str, Any] = json.loads(result.stdout)
    return loaded


def lines(result: Result) -> list[list[str]]:
    """The words of each line of a table."""
    assert result.exit_code in {0, 1}, result.output
    return [line.split() for line in result.stdout.splitlines()]


__all__ = ["Place", "Run", "document", "lines"]
