"""``aiockpt rm``: deletes a checkpoint, metadata first."""

from __future__ import annotations

import sys

import click

from aiockpt.commands.parameters import S3_URI
from aiockpt.commands.session import Session, command
from aiockpt.commands.words import count
from aiockpt.dcp.delete import contents_of, delete_checkpoint
from aiockpt.model import ObjectId

EXAMPLES = """\
  aiockpt rm s3://bucket/run/step-1000
  aiockpt rm --yes --json s3://bucket/run/step-1000
"""


def interactive() -> bool:
    """Whether somebody is there to be asked."""
    return sys.stdin.isatty()


@command(EXAMPLES)
@click.argument("uri", type=S3_URI)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def rm(session: Session, *, uri: ObjectId, yes: bool) -> None:
    """Delete the checkpoint at URI: its metadata first, then the data that they refer to, and nothing else.

    A load that is under way fails, and never reads a mixture. Without a terminal to ask at, --yes is needed.
    """
    found = session.store.run(lambda engine: contents_of(engine, uri))
    if not yes:
        if not interactive():
            raise click.UsageError("Nobody is there to be asked: pass --yes.")
        click.confirm(f"Delete {uri} ({count(len(found.data), 'data object')})?", abort=True, err=True)
    gone = session.store.run(lambda engine: delete_checkpoint(engine, uri))
    if session.as_json:
        session.print_json({"uri": uri.uri, "metadata": [row.key for row in gone.metadata], "data": list(gone.data)})
    else:
        session.print(f"{uri}: deleted, {count(len(gone.metadata) + len(gone.data), 'object')}")
