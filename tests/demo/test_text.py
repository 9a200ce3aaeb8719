from __future__ import annotations

import pytest

from aiockpt.demo.text import corpus


def test_the_text_is_long_and_the_same_every_time() -> None:
    assert len(corpus()) > 300_000
    assert corpus() == corpus()


def test_a_python_without_sources_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiockpt.demo.text.find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match="has none for 'argparse'"):
        corpus()
