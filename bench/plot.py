"""Plots of a report: bars with whiskers, one panel for each column that is worth showing. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path

import click

from bench.contenders import BARE, FSSPEC, NULL, OURS, PEER
from bench.report import Report

_COLOURS = {OURS: "#1f77b4", PEER: "#ff7f0e", FSSPEC: "#9467bd", BARE: "#7f7f7f", NULL: "#c7c7c7"}


def plot(report: Report, path: Path) -> None:
    """Write the report's plotted columns as a PNG.

    Raises:
        ClickException: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415  # optional
    except ImportError as exc:
        raise click.ClickException("--plot needs matplotlib: pip install matplotlib") from exc
    figure = Figure(figsize=(4.6 * len(report.plotted), 1.0 + 0.28 * len(report.rows)), layout="constrained")
    panels = figure.subplots(1, len(report.plotted), sharey=True, squeeze=False)[0]
    labels = [f"{row.contender}  {row.variant}".strip() for row in report.rows]
    for panel, column in zip(panels, report.plotted, strict=True):
        for place, row in enumerate(report.rows):
            if column not in row.values:
                continue
            spread = row.values[column]
            whiskers = [[spread.median - spread.least], [spread.largest - spread.median]]
            panel.barh(
                place, spread.median, xerr=whiskers, color=_COLOURS.get(row.contender, "#2ca02c"), ecolor="#444444"
            )
        panel.set_xlabel(column)
        panel.grid(axis="x", alpha=0.3)
        panel.set_axisbelow(True)
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].invert_yaxis()
    figure.suptitle(report.title, fontsize="medium")
    figure.savefig(path, dpi=80)
