"""``aiockpt ls``: the checkpoints below a prefix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import click

from aiockpt.commands.parameters import S3_URI
from aiockpt.commands.session import Session, command
from aiockpt.commands.words import age, size
from aiockpt.engine.crew import run_all
from aiockpt.engine.engine import LoopEngine
from aiockpt.errors import AiockptError, NotFound
from aiockpt.inspection.listing import Found, find_checkpoints
from aiockpt.inspection.summary import summarize
from aiockpt.model import ObjectId
from aiockpt.transfer.metadata import load

EXAMPLES = """\
  aiockpt ls s3://bucket/run
  aiockpt ls --fast --json s3://bucket | jq '.checkpoints[] | select(.complete | not)'
"""


#: Metadata are loaded on the loop thread, one after the other: more at once would only take memory.
METADATA_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Row:
    """A checkpoint of the listing.

    Attributes:
        found: what the listing tells.
        uri: where it is.
        ranks: how many wrote it: those that its metadata's objects name, else those in the listing.
        tensors: how many it has; None if its metadata was not read.
        problem: why that cannot be.
    """

    found: Found
    uri: str
    ranks: int
    tensors: int | None = None
    problem: str = ""


@command(EXAMPLES)
@click.argument("uri", type=S3_URI)
@click.option("--fast", is_flag=True, help="Read no metadata: no count of tensors.")
def ls(session: Session, *, uri: ObjectId, fast: bool) -> None:
    """List the checkpoints below URI: complete or not, step, age, size, ranks, tensors.

    An incomplete checkpoint has data and no metadata: it is being written, or its writer was killed.
    """
    now = datetime.now(UTC)
    rows = session.store.run(lambda engine: _rows(engine, uri, fast=fast))
    if not rows:
        raise NotFound(f"there are no checkpoints below {uri.uri}")
    if session.as_json:
        session.print_json({"uri": uri.uri, "checkpoints": [_document(row) for row in rows]})
        return
    headings = ("checkpoint", "complete", "step", "age", "size", "ranks", "tensors")
    session.print_table(headings, [_cells(row, now) for row in rows], numbers=headings[2:])
    for row in rows:
        if row.problem:
            session.say(f"{row.uri}: {row.problem}")


async def _rows(engine: LoopEngine, prefix: ObjectId, *, fast: bool) -> Sequence[Row]:
    below = ObjectId(prefix.bucket, f"{prefix.key}/" if prefix.key else "")
    found = find_checkpoints([row async for row in engine.list_objects(below)])
    rows = [Row(one, ObjectId(prefix.bucket, one.path).uri, len(one.ranks)) for one in found]

    async def complete(number: int) -> None:
        rows[number] = await _with_tensors(engine, prefix.bucket, rows[number])

    if not fast:
        await run_all((partial(complete, number) for number in range(len(rows))), METADATA_AT_ONCE)
    return rows


async def _with_tensors(engine: LoopEngine, bucket: str, row: Row) -> Row:
    """With what the metadata tells, if there is any."""
    if not row.found.complete:
        return row
    try:
        summary = summarize([await load(engine, ObjectId(bucket, key)) for key in row.found.metadata])
    except AiockptError as error:  # one bad checkpoint must not hide the others
        return replace(row, problem=str(error))
    return replace(row, ranks=summary.ranks, tensors=len(summary.tensors))


def _document(row: Row) -> dict[str, Any]:
    found = row.found
    return {
        "uri": row.uri,
        "complete": found.complete,
        "step": found.step,
        "modified": found.modified.isoformat() if found.modified else None,
        "nbytes": found.nbytes,
        "objects": found.objects,
        "ranks": row.ranks,
        "tensors": row.tensors,
        "problem": row.problem or None,
    }


def _cells(row: Row, now: datetime) -> Sequence[str]:
    found = row.found
    return (
        row.uri,
        "damaged" if row.problem else "yes" if found.complete else "no",
        "-" if found.step is None else str(found.step),
        age((now - found.modified).total_seconds()) if found.modified else "-",
        size(found.nbytes),
        str(row.ranks),
        "-" if row.tensors is None else f"{row.tensors:,}",
    )
