"""Results: medians with their spread, the bars that they are held against, as a table and as JSON."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from aiockpt.measuring.spread import Spread, hardware, significant


@dataclass(frozen=True, slots=True)
class Row:
    """One contender in one variant: what was measured, by the names of the columns."""

    contender: str
    variant: str
    values: Mapping[str, Spread]


@dataclass(frozen=True, slots=True)
class Bar:
    """What is asked for, and whether it was reached.

    Attributes:
        what: is measured.
        asked: the bar, in words.
        measured: None if it could not be, for want of a peer.
        met: whether it was reached.
    """

    what: str
    asked: str
    measured: float | None
    met: bool

    @classmethod
    def at_least(cls, what: str, least: float, measured: float | None) -> Bar:
        """A bar to be reached from below."""
        return cls(what, f"≥ {significant(least)}", measured, measured is not None and measured >= least)

    @classmethod
    def at_most(cls, what: str, most: float, measured: float | None) -> Bar:
        """A bar to stay below."""
        return cls(what, f"≤ {significant(most)}", measured, measured is not None and measured <= most)


@dataclass
class Report:
    """What a benchmark found.

    Attributes:
        title: what was measured.
        rows: the measurements.
        bars: what they are held against.
        remarks: what a reader should know.
        plotted: the columns to plot.
    """

    title: str
    rows: list[Row] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    plotted: Sequence[str] = ()

    def add(self, contender: str, variant: str, values: Mapping[str, Iterable[float]]) -> None:
        """Add a row of measurements; columns without any are left out."""
        held = {name: list(numbers) for name, numbers in values.items()}
        self.rows.append(Row(contender, variant, {name: Spread.of(held[name]) for name in held if held[name]}))

    def median(self, contender: str, variant: str, column: str) -> float | None:
        """A median; None if it was not measured."""
        for row in self.rows:
            if (row.contender, row.variant) == (contender, variant) and column in row.values:
                return row.values[column].median
        return None

    def worst(self, contender: str, variant: str, column: str) -> float:
        """The largest measurement; infinity if there is none."""
        held = [row.values.get(column) for row in self.rows if (row.contender, row.variant) == (contender, variant)]
        return max((spread.largest for spread in held if spread), default=math.inf)

    def ratio(self, one: tuple[str, str], other: tuple[str, str], column: str) -> float | None:
        """How many times the median of ``other`` that of ``one`` is (contender, variant); None: not measured."""
        above, below = self.median(*one, column), self.median(*other, column)
        return above / below if above is not None and below else None

    def print(self) -> None:
        """Show it on the terminal."""
        console = Console(width=None if sys.stdout.isatty() else 160)
        columns = list(dict.fromkeys(name for row in self.rows for name in row.values))
        table = Table(title=self.title, caption=hardware(), caption_justify="left")
        table.add_column("contender")
        table.add_column("variant")
        for name in columns:
            table.add_column(name, justify="right")
        for row in self.rows:
            table.add_row(row.contender, row.variant, *(_words(row.values.get(name)) for name in columns))
        console.print(table)
        if self.bars:
            console.print(self._bars())
        for remark in self.remarks:
            console.print(remark, highlight=False)

    def _bars(self) -> Table:
        table = Table(title="bars")
        for name in ("what", "asked", "measured", ""):
            table.add_column(name)
        for bar in self.bars:
            verdict = "" if bar.measured is None else "[green]met[/]" if bar.met else "[red]not met[/]"
            measured = "not measured" if bar.measured is None else significant(bar.measured)
            table.add_row(bar.what, bar.asked, measured, verdict)
        return table

    def write_json(self, path: Path) -> None:
        """Write all of it."""
        path.write_text(json.dumps({"hardware": hardware(), **asdict(self)}, indent=1) + "\n")


def _words(spread: Spread | None) -> str:
    """A median and its spread, if there is any."""
    if spread is None:
        return ""
    if spread.least == spread.largest:
        return significant(spread.median)
    return f"{significant(spread.median)} [dim]{significant(spread.least)}-{significant(spread.largest)}[/dim]"
