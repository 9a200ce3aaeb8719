"""The package logs under ``aiockpt``, and prints nothing by itself."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

import aiockpt

SPEAK = """
import logging
import {module}
logging.getLogger("aiockpt").warning("a warning")
logging.getLogger("aiockpt").error("an error")
"""


@pytest.mark.parametrize("module", ["aiockpt", "aiockpt.engine.upload"])
def test_nothing_is_printed_unless_the_program_wants_it(module: str) -> None:
    code = SPEAK.format(module=module)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout + done.stderr == ""


def test_the_programs_own_handlers_hear_it(caplog: pytest.LogCaptureFixture) -> None:
    assert aiockpt.__version__
    logging.getLogger("aiockpt").warning("a warning")
    assert [record.getMessage() for record in caplog.records] == ["a warning"]
