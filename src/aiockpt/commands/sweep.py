"""``aiockpt sweep``: removes what killed writers left."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import click

from aiockpt.commands.parameters import S3_URI
from aiockpt.commands.session import Session, command
from aiockpt.commands.words import count, size
from aiockpt.dcp.remnants import Verdict
from aiockpt.dcp.sweep import GRACE
from aiockpt.dcp.sweep import sweep as sweep_path
from aiockpt.model import ObjectId

EXAMPLES = """\
  aiockpt sweep s3://bucket/run
  aiockpt sweep s3://bucket/run --grace-hours 48 --delete
"""


@command(EXAMPLES)
@click.argument("uri", type=S3_URI)
@click.option("--delete", is_flag=True, help="Remove it; without, only say what would go.")
@click.option(
    "--grace-hours",
    type=click.FloatRange(min=0),
    default=GRACE / timedelta(hours=1),
    show_default=True,
    help="How long nothing may have happened to what goes; 0 only if nobody is saving there.",
)
def sweep(session: Session, *, uri: ObjectId, delete: bool, grace_hours: float) -> None:
    """Find what killed writers left at URI, a checkpoint or a run: data without metadata, unfinished uploads.

    A dry run unless --delete is given. Whatever may belong to a running save stays.
    """
    grace = timedelta(hours=grace_hours)
    swept = session.store.run(lambda engine: sweep_path(engine, uri, grace=grace, dry_run=not delete))
    if session.as_json:
        session.print_json(
            {
                "uri": uri.uri,
                "dry_run": not delete,
                "removed": [_document(verdict) for verdict in swept.removed],
                "kept": [_document(verdict) for verdict in swept.kept],
                "nbytes": swept.nbytes,
            }
        )
        return
    verdicts = [*swept.removed, *swept.kept]
    if verdicts:
        rows = [_cells(verdict, gone="removed" if delete else "would go") for verdict in verdicts]
        session.print_table(("object", "size", "", "why"), rows, numbers=("size",))
    what = f"{count(len(swept.removed), 'remnant')}, {size(swept.nbytes)}"
    how = "removed" if delete else "to remove with --delete"
    session.print(f"{what} {how}", "bold")


def _document(verdict: Verdict) -> dict[str, Any]:
    remnant = verdict.remnant
    return {
        "key": remnant.key,
        "nbytes": remnant.nbytes,
        "upload_id": remnant.upload_id or None,
        "touched": remnant.touched.isoformat() if remnant.touched else None,
        "reason": verdict.reason,
    }


def _cells(verdict: Verdict, *, gone: str) -> Sequence[str]:
    remnant = verdict.remnant
    return (remnant.key, size(remnant.nbytes), gone if verdict.goes else "stays", verdict.reason)
