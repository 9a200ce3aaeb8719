from __future__ import annotations

import io

import pytest
from rich.console import Console

from aiockpt.commands import progress
from aiockpt.commands.progress import Bar


def drawn(*, terminal: bool, quiet: bool = False) -> str:
    stream = io.StringIO()
    with Bar("reading", 1000, Console(file=stream, force_terminal=terminal, quiet=quiet)) as bar:
        bar.advance(400)
        bar.advance(600)
    return stream.getvalue()


def test_what_is_over_at_once_shows_no_bar() -> None:
    assert "reading" not in drawn(terminal=True)


def test_what_takes_long_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY_S", -1.0)
    assert "1.0/1.0 kB" in drawn(terminal=True)


@pytest.mark.parametrize(("terminal", "quiet"), [(False, False), (True, True)])
def test_no_terminal_or_quiet_no_bar(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, quiet: bool) -> None:
    monkeypatch.setattr(progress, "DELAY_S", -1.0)
    assert drawn(terminal=terminal, quiet=quiet).strip() == ""
