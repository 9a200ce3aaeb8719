"""What every command has: where the store is, how much to say, and where to say it.

Results go to standard output, as tables or as one JSON document; progress and messages to standard error.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aiockpt.blocking.store import Store
from aiockpt.commands.failures import EXPECTED, NO, describe, exit_code
from aiockpt.commands.progress import Bar
from aiockpt.config import S3ClientConfig
from aiockpt.model import MiB

#: Wide enough for any line of ours: what reads a pipe wraps by itself, if at all.
_PIPE_COLUMNS = 100_000

#: Staging memory: a program of its own may use more than a library beside a training does. 64 blocks of 4 MiB, one for
#: each connection.
MEMORY_BYTES = 256 * MiB

_LEVELS = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}


@dataclass(frozen=True)
class Session:
    """One run of a command.

    Attributes:
        store: where checkpoints are.
        as_json: whether the result is a JSON document.
        verbosity: -1 for quiet, 0, or how many times ``-v`` was given.
    """

    store: Store
    as_json: bool
    verbosity: int

    def print_json(self, document: Mapping[str, Any]) -> None:
        """The result, for programs."""
        click.echo(json.dumps(document, indent=2))

    def print_table(self, headings: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str] = ()) -> None:
        """A table, for people; columns named in ``numbers`` are aligned to the right."""
        table = Table(box=None, pad_edge=False)
        for heading in headings:
            right = heading in numbers
            table.add_column(
                Text(heading, "bold"),
                justify="right" if right else "left",
                no_wrap=right,
                overflow="fold",
            )
        for row in rows:
            table.add_row(*map(Text, row))
        _console(stderr=False).print(table)

    def print(self, line: str, style: str = "") -> None:
        """A line of the result, for people."""
        _console(stderr=False).print(Text(line, style), soft_wrap=True)

    def say(self, line: str) -> None:
        """A message beside the result, unless quiet."""
        if self.verbosity >= 0:
            _console(stderr=True).print(Text(line), soft_wrap=True)

    def bar(self, title: str, total_bytes: int | None = None) -> Bar:
        """A progress bar on standard error; silent when that is no terminal, or when quiet."""
        return Bar(title, total_bytes, Console(stderr=True, quiet=self.verbosity < 0))


#: The options of every command that talks to a store.
_SHARED = (
    click.Option(["--endpoint-url"], metavar="URL", help="Another S3 than AWS's."),
    click.Option(["--region"], help="The bucket's region; by default what botocore finds."),
    click.Option(["--profile"], help="An AWS profile."),
    click.Option(["--no-sign-request"], is_flag=True, help="Anonymous requests."),
    click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON document."),
    click.Option(["-q", "--quiet"], is_flag=True, help="No progress, no messages: the result, and errors."),
    click.Option(["-v", "--verbose"], count=True, help="Log more; twice: every attempt. Tracebacks of failures."),
)


class ServiceCommand(click.Command):
    """A command whose failures are one line on standard error and an exit code; see ``failures``."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # whoever reads our output has seen enough: click knows what to do
        except EXPECTED as error:
            if ctx.params.get("verbose"):
                click.echo(traceback.format_exc(), err=True, nl=False)
            click.echo(f"Error: {describe(error)}", err=True)
            ctx.exit(exit_code(error))


def command(examples: str) -> Callable[[Callable[..., bool | None]], click.Command]:
    """Make a command of a function of a ``Session`` and of its own options, with the shared ones added.

    What the function returns is the answer to the command's question, None if it asks none.
    """

    def decorate(function: Callable[..., bool | None]) -> click.Command:
        @wraps(function)
        def run(**options: Any) -> None:
            with _session(options) as session:
                answer = function(session, **options)
            if answer is False:
                sys.exit(NO)

        epilog = f"\b\nExamples:\n{examples}"
        made = click.command(function.__name__.rstrip("_"), cls=ServiceCommand, epilog=epilog)(run)
        made.params += _SHARED
        return made

    return decorate


@contextmanager
def _session(options: dict[str, Any]) -> Iterator[Session]:
    """The session that the shared options ask for; takes them out of ``options``."""
    config = S3ClientConfig(
        endpoint_url=options.pop("endpoint_url"),
        profile=options.pop("profile"),
        unsigned=options.pop("no_sign_request"),
        memory_bytes=MEMORY_BYTES,
    )
    store = Store(config, options.pop("region"))
    verbosity = -1 if options.pop("quiet") else options["verbose"]
    del options["verbose"]
    with _logging(_LEVELS.get(verbosity, logging.DEBUG)):
        yield Session(store, options.pop("as_json"), verbosity)


class _StderrHandler(logging.Handler):
    """Writes to whatever standard error is at the time: with a progress bar on it, to the lines above the bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        click.echo(self.format(record), err=True)


@contextmanager
def _logging(level: int) -> Iterator[None]:
    """What the library logs goes to standard error."""
    logger = logging.getLogger("aiockpt")
    handler = _StderrHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    return Console(
        file=stream, width=None if stream.isatty() else _PIPE_COLUMNS, highlight=False, markup=False, emoji=False
    )
