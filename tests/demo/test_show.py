from __future__ import annotations

from rich.console import Console
from rich.table import Table

from aiockpt.demo.experiment import Move
from aiockpt.demo.job import Transfer
from aiockpt.demo.show import checks_table, moves_table
from aiockpt.demo.verdict import Check


def rendered(table: Table) -> list[list[str]]:
    """The cells of each row."""
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in capture.get().splitlines() if "│" in line]


def test_moves() -> None:
    moves = [
        Move("save, 1 process", Transfer(0.5, 2, 2_000_000_000), 17),
        Move("load, 1 process", Transfer(2.0, 2, 2_000_000_000), None),
    ]
    assert rendered(moves_table(moves)) == [
        ["save, 1 process", "2,000.0 MB", "2", "17", "0.50", "4.00"],
        ["load, 1 process", "2,000.0 MB", "2", "-", "2.00", "1.00"],
    ]


def test_checks() -> None:
    checks = [Check("one", 3, ()), Check("other", 3, ("model.[bold]",))]
    assert rendered(checks_table(checks)) == [
        ["one", "3", "identical"],
        ["other", "3", "1 of 3 differ: model.[bold]"],
    ]
