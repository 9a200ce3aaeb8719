"""Reports as a table for people, by rich, which only whoever shows one has to import."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.table import Table

from aiockpt.observe.report import Phase, Report, in_units, merge


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f} s"


_ROWS: dict[str, Callable[[Report], str]] = {
    "total": lambda report: _seconds(report.elapsed_s),
    **{phase.value: lambda report, phase=phase: _seconds(report.phases.get(phase)) for phase in Phase},  # type: ignore[misc]
    "first byte": lambda report: _seconds(report.first_byte_s),
    "wanted": lambda report: in_units(report.wanted_bytes),
    "moved": lambda report: in_units(report.moved_bytes),
    "moved / wanted": lambda report: f"{report.amplification:.3f}",
    "GB/s": lambda report: f"{report.gb_per_s:.3g}",
    "CPU": lambda report: _seconds(report.cpu_s),
    "CPU s/GB": lambda report: f"{report.cpu_s_per_gb:.3g}",
    "requests": lambda report: str(report.requests),
    "retries": lambda report: str(report.retries),
    "hedges": lambda report: str(report.hedges),
    "throttles": lambda report: str(report.throttles),
    "slices": lambda report: f"{report.slices} in {report.stretches} ranges" if report.slices else "0",
    "not compared": lambda report: in_units(report.unproven_bytes),
}


def table_of(reports: Sequence[Report]) -> Table:
    """A column for each report of one save or load, and one for all of them if there are several.

    Raises:
        ValueError: they are not of one save or load, or there are none.
    """
    total = merge(reports)
    columns = [*reports, total] if len(reports) > 1 else [total]
    made = Table(title=f"{total.kind} {total.uri}")
    made.add_column("")
    for report in columns:
        made.add_column("all" if report.rank is None else f"rank {report.rank}", justify="right")
    for name, text in _ROWS.items():
        cells = [text(report) for report in columns]
        if any(cells):
            made.add_row(name, *cells)
    return made
