"""Whole loads of damaged items, in a process of their own: no crash, no wrong tensor, bounded memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def test_damaged_items_of_every_kind(request: pytest.FixtureRequest) -> None:
    long = request.config.getoption("--hypothesis-profile") == "fuzz"
    seed, count = ("7", "20000") if long else ("1", "200")
    program = [sys.executable, "-X", "faulthandler", str(Path(__file__).with_name("loads.py")), seed, count]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
