"""Bridges of the tests' own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aiockpt.bridge import Bridge


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    made = Bridge("loop")
    yield made
    made.close()


@pytest.fixture
def other() -> Iterator[Bridge]:
    """A second one, that serves the first."""
    made = Bridge("loop-2")
    yield made
    made.close()
