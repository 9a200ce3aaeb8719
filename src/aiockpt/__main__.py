"""``python -m aiockpt``: the command line."""

from __future__ import annotations

from aiockpt.cli import main

main(prog_name="aiockpt")
