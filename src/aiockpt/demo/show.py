"""The demo's tables."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from aiockpt.demo.experiment import Move
from aiockpt.demo.verdict import Check


def moves_table(moves: Iterable[Move]) -> Table:
    """What was saved and loaded, and how fast; sizes in powers of ten, as GB/s are."""
    caption = "each the first of a new process: building the client and DCP's planning are part of the time"
    table = Table("checkpoint", title="Moved", caption=caption)
    for heading in ("bytes", "objects", "requests", "seconds", "GB/s"):
        table.add_column(heading, justify="right")
    for move in moves:
        transfer = move.transfer
        table.add_row(
            move.title,
            f"{transfer.stored_bytes / 1e6:,.1f} MB",
            str(transfer.objects),
            "-" if move.requests is None else str(move.requests),
            f"{transfer.seconds:.2f}",
            f"{transfer.stored_bytes / 1e9 / transfer.seconds:.2f}",
        )
    return table


def checks_table(checks: Iterable[Check]) -> Table:
    """What was compared, and what came of it."""
    table = Table("compared, bit by bit", title="Resumed against uninterrupted")
    table.add_column("values", justify="right")
    table.add_column("verdict")
    for check in checks:
        table.add_row(check.title, str(check.compared), Text(check.verdict, "green" if check.passed else "bold red"))
    return table
