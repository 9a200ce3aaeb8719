"""Options that all benchmarks have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from bench.contenders import CONTENDERS, FSSPEC, NULL, OURS, PEER
from bench.plot import plot
from bench.report import Report
from bench.storage import Place


@dataclass(frozen=True, slots=True)
class Settings:
    """What a benchmark is told.

    Attributes:
        nbytes: of the state dict.
        rounds: measured, after one for warming up.
        contenders: the names of those that are wanted.
        place: where to store.
    """

    nbytes: int
    rounds: int
    contenders: Sequence[str]
    place: Place


def benchmark(
    *, size_gb: float = 1.2, rounds: int = 5, contenders: Sequence[str] = (OURS, PEER, FSSPEC)
) -> Callable[[Callable[..., Report]], click.Command]:
    """Make a command of a function that takes ``Settings`` (and options of its own) and returns a report."""

    def decorate(function: Callable[..., Report]) -> click.Command:
        @wraps(function)
        def command(
            *,
            size_gb: float,
            rounds: int,
            contenders: tuple[str, ...],
            bucket: str,
            prefix: str,
            region: str,
            endpoint_url: str | None,
            json_path: Path | None,
            plot_path: Path | None,
            **own: Any,
        ) -> None:
            place = Place(bucket, prefix, region, endpoint_url)
            report = function(Settings(int(size_gb * 1e9), rounds, contenders, place), **own)
            report.print()
            if json_path:
                report.write_json(json_path)
            if plot_path:
                plot(report, plot_path)

        options = [
            click.option("--size-gb", default=size_gb, show_default=True, help="Size of the state dict."),
            click.option("--rounds", default=rounds, show_default=True, help="Measured, after one to warm up."),
            click.option(
                "--contender",
                "contenders",
                multiple=True,
                type=click.Choice([name for name in CONTENDERS if name != NULL]),
                default=list(contenders),
                show_default=True,
                help="Repeatable; those that are not installed are left out.",
            ),
            click.option("--bucket", default="", help="Yours; by default a local endpoint is started."),
            click.option(
                "--prefix", default="", help="Of keys in your bucket; what is written there is deleted again."
            ),
            click.option("--region", default="us-east-1", show_default=True, help="Of your bucket."),
            click.option("--endpoint-url", help="Of another service than AWS."),
            click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write results."),
            click.option("--plot", "plot_path", type=click.Path(dir_okay=False, path_type=Path), help="Write a PNG."),
        ]
        made: Callable[..., None] = command
        for option in reversed(options):
            made = option(made)
        return click.command(help=function.__doc__)(made)

    return decorate
